"""Run by the distributed test as one of two processes: every other batch is its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from nets_of_readers import TwoHeads, Widths, images, made, sequences, tasks, third
from torch import Tensor
from torch import distributed as processes

from taskprune import Task
from taskprune.compensation import compensate


def weights(pictures: list[Tensor], texts: list[Tensor]) -> dict[str, Tensor]:
    """Compensate a net of each kind on its data."""
    model = made(TwoHeads)
    plan = third(model, images()[0])
    found = compensate(model, plan, pictures, tasks=tasks()).model.state_dict()
    model = made(Widths)
    plan = third(model, sequences()[0])
    named = {"size": Task(lambda outputs, batch: (outputs - batch[..., :3]).square().mean())}
    result = compensate(model, plan, texts, tasks=named)
    assert any(report.folded for report in result.readers)
    return found | result.model.state_dict()


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes.init_process_group("gloo")
    rank = processes.get_rank()
    torch.save(weights(images()[rank::2], sequences()[rank::2]), Path(sys.argv[1]) / f"{rank}.pt")
    processes.destroy_process_group()
