"""Run by the test of FSDP as one of two processes; the same runs on one process are compared."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from distill_toys import (
    Interrupted,
    Scenes,
    TwoTaskNet,
    interrupt_at,
    make_batches,
    make_net,
    make_tasks,
    state,
    watched,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from taskprune.calling.task import Task
from taskprune.distillation import DistillSettings, StepRecord, Validation, distill, mse
from taskprune.errors import TrainingError

N_SCENES = 16


class Sum:
    """A metric that any weight and any statistic changes."""

    def reset(self) -> None:
        self.total = 0.0

    def update(self, outputs: Any, batch: Any, /) -> None:
        self.total += outputs["near"].double().sum().item()

    def compute(self) -> float:
        return self.total


class Numbered(Scenes):
    """Scenes that know their place, for labels that some batches lack."""

    def __getitem__(self, index: int) -> Any:
        return *super().__getitem__(index), index


def without_far(every: int) -> Any:
    """Return a ``collate_fn`` that drops the labels of one task in every other stretch."""

    def collate(samples: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        images, near, far, index = default_collate(list(samples))
        return images, near, None if int(index[0]) // every % 2 else far

    return collate


def train(
    *, batch_size: int, every: int | None = None, norm: bool = False, **settings: Any
) -> tuple[TwoTaskNet, list[StepRecord]]:
    """Train a student of another width, so that there are adapters."""
    student = make_net(1, width=4, norm=norm)
    records: list[StepRecord] = []
    callbacks = settings.pop("callbacks", ())
    every = every or 2 * N_SCENES
    distill(
        student,
        make_net(0, norm=norm),
        tasks=settings.pop("tasks", make_tasks()),
        data=DataLoader(
            Numbered(N_SCENES, augment=False), batch_size=batch_size, collate_fn=without_far(every)
        ),
        taps=["stem", "stage"],
        settings=DistillSettings(
            steps=4,
            learning_rate=settings.pop("learning_rate", 1e-2),
            weight_decay=0.1,
            feature_loss=mse,  # a mean over samples, so that halves of a batch add up
            cpu=True,
            callbacks=(*callbacks, lambda record, _: records.append(record)),
            **settings,
        ),
    )
    return student, records


def everything(batch_size: int, **settings: Any) -> TwoTaskNet:
    """Train with all that touches gradients and weights."""
    return train(
        batch_size=batch_size, accumulation=2, gradient_clip=0.3, ema_decay=0.9, **settings
    )[0]


def best(batch_size: int) -> TwoTaskNet:
    """Train until it breaks and keep the best weights, those of a running average."""
    return train(
        batch_size=batch_size,
        ema_decay=0.5,
        learning_rate=lambda step: 1e-2 if step < 2 else 1.0,
        keep_best=Validation(watched(), make_batches(2), every=1),
    )[0]


def without_labels(batch_size: int) -> TwoTaskNet:
    """Train on batches of which every other one lacks labels of a task."""
    return train(batch_size=batch_size, every=4)[0]


def nan_in_second_process(outputs: Any, batch: Any) -> Tensor:
    loss: Tensor = (outputs["near"] - batch[1]).square().mean()
    nan_in_second_process.calls += 1  # type: ignore[attr-defined]
    is_last = nan_in_second_process.calls == 3  # type: ignore[attr-defined]
    return loss * float("nan") if is_last and os.environ["RANK"] == "1" else loss


nan_in_second_process.calls = 0  # type: ignore[attr-defined]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]

    def keep(name: str, student: nn.Module) -> None:
        save_file(state(student), folder / f"{name}_{rank}.safetensors")

    student = everything(2)
    assert type(student) is TwoTaskNet
    assert all(type(p) is nn.Parameter for p in student.parameters())
    keep("everything", student)
    keep("without labels", without_labels(2))

    sharded = train(batch_size=2, every=2)[0]  # one process has labels, the other has none
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    keep("data-parallel", train(batch_size=2, every=2)[0])
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    keep("labels in one process", sharded)

    held_out = [(torch.ones(2, 3, 8, 8), None, None)]
    watch = Validation({"near": Task(make_tasks()["near"].loss, metric=Sum())}, held_out, every=1)
    normed, records = train(batch_size=2, norm=True, callbacks=(watch,))
    keep("normed", normed)
    metric = Sum()
    metric.reset()
    with torch.no_grad():
        metric.update(normed.eval()(held_out[0][0]), None)
    torch.testing.assert_close(records[-1].measured["validation/near"], metric.compute())

    os.environ["FSDP_RESHARD_AFTER_FORWARD"] = "false"  # validation leaves weights gathered
    averaged, records = train(batch_size=2, norm=True, ema_decay=0.9, callbacks=(watch,))
    keep("averaged and watched", averaged)
    metric.reset()
    with torch.no_grad():
        metric.update(averaged.eval()(held_out[0][0]), None)
    torch.testing.assert_close(records[-1].measured["validation/near"], metric.compute())
    keep("averaged", train(batch_size=2, norm=True, ema_decay=0.9)[0])
    keep("best", best(2))
    del os.environ["FSDP_RESHARD_AFTER_FORWARD"]

    kept: dict[str, Any] = {"directory": folder / "run", "checkpoint_every": 2}
    try:
        everything(2, callbacks=(interrupt_at(3),), **kept)
    except Interrupted:
        keep("resumed", everything(2, **kept))

    student = make_net(1)
    try:
        distill(
            student,
            make_net(0),
            tasks={"near": Task(nan_in_second_process)},
            data=DataLoader(Scenes(12, augment=False), batch_size=2),
            taps=["stage"],
            settings=DistillSettings(steps=3, cpu=True, learning_rate=1e-2),
        )
    except TrainingError as error:
        (folder / f"said_{rank}.txt").write_text(str(error))
    keep("stopped by NaN", student)
