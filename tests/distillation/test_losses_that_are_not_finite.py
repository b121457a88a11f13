from __future__ import annotations

import math
from typing import Any

import pytest
from distill_run import run, settings
from distill_toys import (
    make_batches,
    make_net,
    n_hooks,
    same_state,
    state,
)
from torch import Tensor, nn

from taskprune.calling.task import Task
from taskprune.distillation import (
    StepRecord,
)
from taskprune.errors import (
    TrainingError,
)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_the_last_good_weights(value: float) -> None:
    calls, good = [], []

    def loss(outputs: dict[str, Tensor], batch: Any) -> Tensor:
        calls.append(1)
        return outputs["near"].square().mean() * (value if len(calls) == 6 else 1.0)

    def keep(record: StepRecord, student: nn.Module) -> None:
        good.append(state(student))

    teacher, student = make_net(0, norm=True), make_net(1, norm=True)
    before = state(teacher)
    with pytest.raises(TrainingError, match=r"Step 6: the task loss `near` .* batch 1 of epoch 1"):
        run(
            student,
            teacher,
            tasks={"near": Task(loss)},
            settings=settings(10, callbacks=(keep,)),
        )
    assert len(good) == 5
    assert same_state(state(student), good[-1])
    assert same_state(state(teacher), before)
    assert all(p.grad is None for p in student.parameters())
    assert n_hooks(student) == n_hooks(teacher) == 0


def test_images_that_are_not_finite_spoil_no_statistics() -> None:
    student = make_net(1, norm=True)
    before = state(student)
    images, near, far = make_batches(1)[0]
    with pytest.raises(TrainingError, match="lower the learning rate"):
        run(student, make_net(0, norm=True), data=[(images * math.nan, near, far)])
    assert same_state(state(student), before)


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    def loss(outputs: dict[str, Tensor], batch: Any) -> Tensor:
        return (outputs["near"] * 0).abs().sqrt().mean()  # 0, with an infinite slope

    with pytest.raises(TrainingError, match="gradient norm"):
        run(make_net(1), make_net(0), tasks={"near": Task(loss)})
