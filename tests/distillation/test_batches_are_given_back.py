"""Models that write to what they are given: the next one to see the batch finds it as it was."""

from __future__ import annotations

import copy
from typing import Any

import torch
from distill_run import run, settings
from distill_toys import TwoTaskNet, make_batches, randomise, same_state, state
from torch import Tensor

from taskprune.calling.task import Task
from taskprune.distillation import measure


class InPlace(TwoTaskNet):
    """Normalises its input where it lies."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return super().forward(images.sub_(0.5).mul_(2.0))


class OutOfPlace(TwoTaskNet):
    """Does the same with a copy."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return super().forward((images - 0.5) * 2.0)


def pair(kind: type[TwoTaskNet]) -> tuple[TwoTaskNet, TwoTaskNet]:
    student, teacher = kind(), kind()
    randomise(student, 1)
    randomise(teacher, 0)
    return student, teacher


def test_student_and_teacher_that_write_to_their_input_see_the_same_images() -> None:
    batches = make_batches()
    before = copy.deepcopy(batches)
    wanted, _ = pair(OutOfPlace)
    found, teacher = pair(InPlace)
    # Eight steps: the list comes around twice.
    run(wanted, pair(OutOfPlace)[1], data=copy.deepcopy(batches), settings=settings(8))
    run(found, teacher, data=batches, settings=settings(8))
    assert same_state(state(found), state(wanted))
    for batch, old in zip(batches, before, strict=True):
        for tensor, value in zip(batch, old, strict=True):
            assert tensor is not None
            assert value is not None
            assert torch.equal(tensor, value)


class MeanNear:
    """The mean of an output."""

    def reset(self) -> None:
        self.sum = 0.0

    def update(self, outputs: Any, batch: Any) -> None:
        self.sum += float(outputs["near"].mean())

    def compute(self) -> float:
        return self.sum


def test_a_second_measurement_of_a_model_that_writes_to_its_input_is_the_first() -> None:
    net, _ = pair(InPlace)
    tasks = {"near": Task(lambda outputs, _: outputs["near"].mean(), metric=MeanNear())}
    batches = make_batches()
    first, second = (measure(net, tasks, batches) for _ in range(2))
    assert first == second
