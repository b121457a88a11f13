"""Run as one of two processes, of which one, or both, meet batches without any label."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from distill_toys import Batch, Scenes, make_net, make_tasks, state
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Subset, default_collate

from taskprune.calling.task import Task
from taskprune.distillation import DistillSettings, distill
from taskprune.errors import TrainingError

N_SCENES = 16


def without_labels(batch: Batch) -> Batch:
    return batch[0], None, None


class Numbered(Scenes):
    """Scenes that know their place."""

    def __getitem__(self, index: int) -> Any:
        return *super().__getitem__(index), index


def train(which: str, *, batch_size: int, halved: bool = False) -> nn.Module:
    """Train on batches of which each second, two of four or all lack every label.

    With ``halved``, on one process with the labelled ones of the first kind alone.
    """

    def collate(samples: Sequence[Any]) -> Batch:
        images, near, far, index = default_collate(list(samples))
        number = int(index[0]) // 2
        is_bare = {"one": number % 2 == 1, "none": number % 4 > 1, "all": True}[which]
        return without_labels((images, near, far)) if is_bare else (images, near, far)

    scenes: Any = Numbered(N_SCENES, augment=False)
    if halved:
        scenes = Subset(scenes, [i for i in range(N_SCENES) if i // 2 % 2 == 0])
    factor = 0.5 if halved else 1.0
    tasks = {name: Task(t.loss, weight=t.weight * factor) for name, t in make_tasks().items()}
    student = make_net(1)
    distill(
        student,
        make_net(0),
        tasks=tasks,
        data=DataLoader(scenes, batch_size=batch_size, collate_fn=collate),
        taps=(),
        settings=DistillSettings(steps=6, learning_rate=1e-2, weight_decay=0.1, cpu=True),
    )
    return student


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    for name in ("one", "none"):
        save_file(state(train(name, batch_size=2)), folder / f"{name}_{rank}.safetensors")
    try:
        train("all", batch_size=2)
    except TrainingError as error:
        (folder / f"said_{rank}.txt").write_text(str(error))
