"""Run by the distributed test as one of two processes: every other batch is its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_made import batches, second_loss, two_task_groups, two_task_net, two_tasks
from torch import Tensor
from torch import distributed as processes

from taskprune.calling.task import Task
from taskprune.errors import LossError
from taskprune.importance import (
    CosineConflict,
    Importance,
    TaskTaylorImportance,
    score,
)

CRITERIA: dict[str, str | Importance] = {
    name: name
    for name in (
        "task_taylor",
        "taylor",
        "cosprune",
        "magnitude",
        "random",
    )
} | {"cosine conflict": TaskTaylorImportance(conflict=CosineConflict())}


def scores(data: list[Any], rare: Any) -> dict[str, Any]:
    """Score with each criterion; the second task has labels in one batch only."""

    def rarely(outputs: Any, batch: Any) -> Tensor | None:
        return second_loss(outputs, batch) if torch.equal(batch[0], rare[0]) else None

    net = two_task_net()
    tasks = two_tasks() | {"third": Task(rarely)}
    found: dict[str, Any] = {}
    for name, criterion in CRITERIA.items():
        own = score(net, two_task_groups(net), tasks, data, importance=criterion)
        found[name] = {
            "total": torch.cat([group.total for group in own.groups.values()]),
            "per_task": torch.cat([group.per_task for group in own.groups.values()], dim=1),
            "n_batches": own.n_batches,
        }
    return found


def failing(outputs: Any, batch: Any) -> Tensor:
    """Fail in one process only."""
    loss = second_loss(outputs, batch)
    return loss * float("nan") if processes.get_rank() == 1 else loss


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes.init_process_group("gloo")
    rank = processes.get_rank()
    data = batches(5)
    torch.save(scores(data[rank::2], data[1]), Path(sys.argv[1]) / f"{rank}.pt")
    net = two_task_net()
    with pytest.raises(LossError, match="it is nan" if rank else "process 1 of 2.*it is nan"):
        score(net, two_task_groups(net), {"second": Task(failing)}, data[rank::2])
    processes.destroy_process_group()
