"""The student ends with the weights with which its worst task was best, its first ones included."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_run import run, settings
from distill_toys import (
    Interrupted,
    MinusLoss,
    interrupt_at,
    make_batches,
    make_net,
    make_tasks,
    same_state,
    sliced,
    state,
    watched,
)
from torch import Tensor, nn

import taskprune
from taskprune.calling.task import Task
from taskprune.calling.tolerances import worst_change
from taskprune.distillation import DistillSettings, StepRecord, Validation, measure
from taskprune.errors import CheckpointError, InputError

KEEP = (0, 2, 5)


def validation(every: int = 1) -> Validation:
    return Validation(watched(), make_batches(3), every=every)


def worst(student: nn.Module, teacher: nn.Module) -> float:
    goal, found = (measure(net, watched(), make_batches(3)) for net in (teacher, student))
    return min((found[name] - goal[name]) / abs(goal[name]) for name in goal)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_best_step_is_chosen_by_its_worst_task(ema_decay: float | None) -> None:
    teacher, student = make_net(0, norm=True), make_net(1, norm=True)
    seen = [state(student)]

    def keep(record: StepRecord, net: nn.Module) -> None:
        seen.append(state(net))

    start = worst(student, teacher)
    chosen = settings(
        12,
        learning_rate=lambda step: 0.01 if step < 5 else 3.0,  # it learns, then breaks
        ema_decay=ema_decay,
        callbacks=(keep,),
        keep_best=validation(),
    )
    result = run(student, teacher, settings=chosen)
    goal = {f"validation/{n}": v for n, v in measure(teacher, watched(), make_batches(3)).items()}
    changes = [
        min((record.measured[name] - goal[name]) / abs(goal[name]) for name in goal)
        for record in result.history
    ]
    best = max(range(12), key=lambda i: changes[i])
    assert 0 < best < 11
    assert changes[best] > start
    assert result.step == best + 1
    assert same_state(state(student), seen[result.step])
    assert worst(student, teacher) == pytest.approx(changes[best])


def test_a_run_that_only_harms_ends_where_it_began() -> None:
    teacher = make_net(0)
    student = sliced(teacher, KEEP)
    before = state(student)
    harmful = settings(6, learning_rate=3.0, keep_best=validation(2))
    assert run(student, teacher, settings=harmful, channel_map={"stage": KEEP}).step == 0
    assert same_state(state(student), before)


def test_small_steps_with_frozen_norms_after_pruning_end_no_lower() -> None:
    torch.manual_seed(0)
    teacher = make_net(0, norm=True)
    pruned = taskprune.prune(teacher, watched(), 0.15, data=make_batches(2))
    start = worst(pruned.model, teacher)
    statistics = {n: t for n, t in state(pruned.model).items() if "running" in n}
    gentle = DistillSettings(
        steps=20,
        learning_rate=1e-3,
        frozen_batchnorm=True,
        keep_best=validation(5),
        cpu=True,
    )
    student = taskprune.distill(
        pruned.model,
        teacher=teacher,
        tasks=watched(),
        data=make_batches(),
        plan=pruned.plan,
        settings=gentle,
    )
    assert worst(student, teacher) >= start
    assert all(torch.equal(state(student)[name], t) for name, t in statistics.items())


def test_measuring_changes_nothing_on_the_way() -> None:
    teacher = make_net(0, norm=True)
    plain, kept = (make_net(1, norm=True, dropout=0.3) for _ in range(2))
    losses = [
        [record.loss for record in run(net, teacher, settings=chosen).history]
        for net, chosen in ((plain, settings(6)), (kept, settings(6, keep_best=validation(2))))
    ]
    assert losses[0] == losses[1]


def test_the_last_step_is_measured_too() -> None:
    history = run(make_net(1), make_net(0), settings=settings(5, keep_best=validation(3))).history
    assert [bool(record.measured) for record in history] == [False, False, True, False, True]


@pytest.mark.parametrize("ema_decay", [None, 0.5])
@pytest.mark.parametrize("at", [1, 4, 9])
def test_a_run_that_goes_on_ends_with_the_same_best_weights(
    tmp_path: Path, at: int, ema_decay: float | None
) -> None:
    def go(student: nn.Module, **changes: Any) -> Any:
        return run(
            student,
            make_net(0, norm=True),
            settings=settings(
                10,
                learning_rate=lambda step: 0.01 if step < 5 else 3.0,
                ema_decay=ema_decay,
                checkpoint_every=3,
                keep_best=validation(),
                **changes,
            ),
        )

    whole, resumed = make_net(1, norm=True), make_net(1, norm=True)
    expected = go(whole)
    with pytest.raises(Interrupted):
        go(make_net(1, norm=True), directory=tmp_path, callbacks=(interrupt_at(at),))
    found = go(resumed, directory=tmp_path)
    assert found.step == expected.step
    assert found.history == expected.history
    assert same_state(state(resumed), state(whole))
    again = make_net(1, norm=True)
    assert go(again, directory=tmp_path).step == expected.step
    assert same_state(state(again), state(whole))


def test_whether_the_best_is_kept_is_part_of_the_run(tmp_path: Path) -> None:
    run(make_net(1), make_net(0), settings=settings(directory=tmp_path))
    with pytest.raises(CheckpointError, match="keep_best"):
        run(make_net(1), make_net(0), settings=settings(directory=tmp_path, keep_best=validation()))


def test_an_error_while_the_start_is_measured_leaves_the_student_as_it_was() -> None:
    class FailedError(Exception):
        """The metric's own."""

    class Failing(MinusLoss):
        def compute(self) -> float:
            raise FailedError

    student = make_net(1, norm=True)
    before, flags = state(student), [module.training for module in student.modules()]
    tasks = {"near": Task(make_tasks()["near"].loss, metric=Failing(make_tasks()["near"]))}
    failing = settings(keep_best=Validation(tasks, make_batches(1), every=1))
    with pytest.raises(FailedError):
        run(student, make_net(0, norm=True), settings=failing)
    assert same_state(state(student), before)
    assert [module.training for module in student.modules()] == flags


def test_tasks_without_a_figure_of_the_teacher_are_left_out() -> None:
    class Unlabelled(MinusLoss):
        def compute(self) -> float:
            return math.nan

    near = make_tasks()["near"]
    unlabelled = {"near": Task(near.loss, metric=Unlabelled(near))}
    for tasks, is_refused in ((watched() | unlabelled, False), (unlabelled, True)):
        chosen = settings(2, keep_best=Validation(tasks, make_batches(1), every=1))
        if is_refused:
            with pytest.raises(InputError, match="NaN for the teacher"):
                run(make_net(1), make_net(0), settings=chosen)
        else:
            run(make_net(1), make_net(0), settings=chosen)


def test_the_worst_change_is_a_part_of_the_teachers_figure() -> None:
    teacher = {"lane": 0.5, "depth": -4.0, "new": 0.0}
    assert worst_change(teacher, {"lane": 0.4, "depth": -4.1, "new": 0.1}) == pytest.approx(-0.2)
    assert worst_change(teacher, {"lane": 0.6, "depth": -5.0, "new": 0.1}) == pytest.approx(-0.25)
    assert worst_change(teacher, {"lane": 0.6, "depth": -4.0, "new": -0.5}) == pytest.approx(-0.5)
    assert worst_change(teacher, {"lane": math.nan, "depth": 0.0, "new": 1.0}) == -math.inf


class Counted(nn.Module):
    """A net with a count among its buffers, replaced in every forward pass."""

    calls: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Any:
        if self.training:
            self.calls = self.calls + 1
        return self.net(images)


def test_counts_and_buffers_that_are_replaced_are_those_of_the_best_step() -> None:
    teacher = make_net(0)
    student = Counted(deepcopy(make_net(1)))
    chosen = settings(
        6, learning_rate=lambda step: 0.01 if step < 3 else 3.0, keep_best=validation()
    )
    result = run(student, Counted(teacher), taps=["net.stage"], settings=chosen)
    assert 0 < result.step < 6
    assert int(student.calls) == result.step
