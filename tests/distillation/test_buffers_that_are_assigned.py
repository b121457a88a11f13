"""Models that give a buffer a new tensor in every forward pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_run import run, settings
from distill_toys import Batch, TwoTaskNet, make_batches, randomise, same_state, state
from torch import Tensor

from taskprune.distillation.buffers import BufferSlots
from taskprune.distillation.kept_weights import WeightAverage
from taskprune.errors import TrainingError


class Centred(TwoTaskNet):
    """Keeps a running mean of its images."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * images.mean((0, 2, 3))
        return super().forward(images - self.mean[:, None, None])


def make(seed: int) -> Centred:
    net = Centred()
    randomise(net, seed)
    return net


def spoilt(batches: list[Batch], number: int) -> list[Batch]:
    images, near, far = batches[number]
    return [*batches[:number], (images * math.nan, near, far), *batches[number + 1 :]]


def test_nan_reaches_neither_the_student_nor_the_checkpoint(tmp_path: Path) -> None:
    def go(data: list[Batch], **changes: Any) -> Centred:
        student = make(1)
        run(student, make(0), data=data, settings=settings(9, **changes))
        return student

    batches, student = make_batches(), make(1)
    with pytest.raises(TrainingError, match="Step 3"):
        run(
            student,
            make(0),
            data=spoilt(batches, 2),
            settings=settings(9, directory=tmp_path),
        )
    good = make(1)
    run(good, make(0), data=batches, settings=settings(2))
    assert torch.equal(student.mean, good.mean)
    assert same_state(state(go(batches, directory=tmp_path)), state(go(batches)))


def test_the_running_average_follows_the_buffer_that_is_there_now() -> None:
    net = make(1)
    average = WeightAverage(net, decay=0.5)
    net.mean = torch.full((3,), 11.0)
    start = average.tensors["mean"].clone()
    average.update(1)
    torch.testing.assert_close(average.tensors["mean"], start + (11.0 - start) * 9 / 11)
    net.mean = torch.zeros(3)
    average.give()
    assert torch.equal(net.mean, average.tensors["mean"])


def test_slots_see_what_is_there_now() -> None:
    net = make(1)
    slots = BufferSlots(net)
    old = slots.named()
    net.mean = torch.ones(3)
    assert slots.named()["mean"] is net.mean
    slots.bind(old)
    assert net.mean is old["mean"]
