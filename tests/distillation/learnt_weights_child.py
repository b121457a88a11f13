"""Run by the distributed test as one of two processes, which learn weights of losses."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from distill_toys import Scenes, make_net, make_tasks, state
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from taskprune.distillation import DistillSettings, GradNorm, UncertaintyWeights, distill, mse
from taskprune.distillation.weighting import Weighting

Learnt = tuple[nn.Module, list[dict[str, float]]]


def train(weighting: Weighting, *, batch_size: int, norm: bool = False) -> Learnt:
    """Return the student and the weights of every step."""
    student = make_net(1, norm=norm)
    result = distill(
        student,
        make_net(0, norm=norm),
        tasks=make_tasks(),
        data=DataLoader(Scenes(12, augment=False), batch_size=batch_size),
        taps=["stage"],
        settings=DistillSettings(steps=6, cpu=True, feature_loss=mse, weighting=weighting),
    )
    return student, [dict(record.weights) for record in result.history]


def by_uncertainty(batch_size: int) -> Learnt:
    return train(UncertaintyWeights(0.1), batch_size=batch_size)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    runs = {
        "gradnorm": train(GradNorm("stem", learning_rate=0.1), batch_size=2, norm=True),
        "uncertainty": by_uncertainty(batch_size=2),
    }
    for name, (student, weights) in runs.items():
        save_file(state(student), folder / f"{name}_{rank}.safetensors")
        (folder / f"{name}_{rank}.json").write_text(json.dumps(weights))
