"""Run by the distributed test as one of two processes."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from distill_toys import (
    Interrupted,
    Scenes,
    interrupt_at,
    make_batches,
    make_net,
    make_tasks,
    state,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from taskprune.calling.task import Task
from taskprune.distillation import DistillSettings, Validation, distill, mse
from taskprune.distillation.history import Callback


def train(
    *callbacks: Callback, batch_size: int, shuffle: bool, directory: Path | None = None
) -> nn.Module:
    """Train a student of another width, so that an adapter has to be synchronised as well."""
    student = make_net(1, width=4)
    data = DataLoader(Scenes(12, augment=shuffle), batch_size=batch_size, shuffle=shuffle)
    distill(
        student,
        make_net(0),
        tasks=make_tasks(),
        data=data,
        taps=["stem", "stage"],
        settings=DistillSettings(
            epochs=3,
            learning_rate=1e-2,
            feature_loss=mse,  # a mean over samples, so that halves of a batch add up
            gradient_clip=math.inf,
            cpu=True,
            directory=directory,
            checkpoint_every=2,
            callbacks=callbacks,
        ),
    )
    assert getattr(data.sampler, "generator", None) is None
    return student


class Disagreeing:
    """A metric that rises in one process and falls in the other."""

    def __init__(self) -> None:
        self.value = 0.0

    def reset(self) -> None:
        self.value += 1.0 if os.environ["RANK"] == "0" else -1.0

    def update(self, outputs: Any, batch: Any, /) -> None:
        pass

    def compute(self) -> float:
        return self.value


def best() -> nn.Module:
    """Train with norms, and keep what the processes do not agree on."""
    student = make_net(1, norm=True)
    tasks = {name: Task(task.loss, metric=Disagreeing()) for name, task in make_tasks().items()}
    distill(
        student,
        make_net(0, norm=True),
        tasks=tasks,
        data=DataLoader(Scenes(12, augment=False), batch_size=2),
        taps=["stage"],
        settings=DistillSettings(
            steps=4, cpu=True, keep_best=Validation(tasks, make_batches(1), every=1)
        ),
    )
    return student


def gradients(*, batch_size: int) -> dict[str, Tensor]:
    """Return what reaches the optimizer in the first step, in the order of its parameters."""
    seen: list[Tensor] = []

    def look(optimizer: torch.optim.Optimizer, args: Any, keywords: Any) -> None:
        if not seen:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            seen.extend(p.grad.clone() for p in parameters)

    handle = register_optimizer_step_pre_hook(look)
    try:
        train(batch_size=batch_size, shuffle=False)
    finally:
        handle.remove()
    return {str(number): gradient for number, gradient in enumerate(seen)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    save_file(gradients(batch_size=2), folder / f"gradients_{rank}.safetensors")
    save_file(state(train(batch_size=2, shuffle=False)), folder / f"split_{rank}.safetensors")
    save_file(state(train(batch_size=2, shuffle=True)), folder / f"whole_{rank}.safetensors")
    save_file(state(best()), folder / f"best_{rank}.safetensors")
    try:
        train(interrupt_at(7), batch_size=2, shuffle=True, directory=folder / "run")
    except Interrupted:
        resumed = train(batch_size=2, shuffle=True, directory=folder / "run")
        save_file(state(resumed), folder / f"resumed_{rank}.safetensors")
