"""A directory with another run's checkpoint is refused, and what is found there is said."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_run import run, settings
from distill_toys import Interrupted, interrupt_at, make_net, make_tasks, same_state, state
from resume_child import train
from torch import Tensor

from taskprune.calling.task import Task
from taskprune.distillation import OnOutputs, mse, pkd
from taskprune.distillation.identity import checksum, described
from taskprune.errors import CheckpointError


def other_loss(outputs: Any, batch: Any) -> Tensor:
    loss: Tensor = (outputs["near"] + 1).square().mean()
    return loss


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"student": make_net(7)}, "student_checksum"),
        ({"teacher": make_net(7)}, "teacher_checksum"),
        ({"tasks": make_tasks() | {"near": Task(other_loss)}}, "tasks"),
        ({"settings": {"feature_weight": lambda _: 50.0}}, "feature_weight"),
        ({"settings": {"feature_loss": lambda a, b: pkd(a, b)}}, "feature_loss"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_of_equal_shapes_is_told_apart(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    first: dict[str, Any] = {
        "feature_weight": lambda _: 1.0,
        "feature_loss": lambda a, b: mse(a, b),
        "directory": tmp_path,
    }
    run(make_net(1), make_net(0), settings=settings(2, **first))
    student = changes.get("student", make_net(1))
    before = state(student)
    with pytest.raises(CheckpointError, match=f"belongs to another run: `{key}`"):
        run(
            student,
            changes.get("teacher", make_net(0)),
            tasks=changes.get("tasks", make_tasks()),
            settings=settings(2, **first | changes.get("settings", {})),
        )
    assert same_state(state(student), before)


def test_the_student_of_a_call_that_failed_goes_on_with_its_run(tmp_path: Path) -> None:
    student, never_stopped = make_net(1), make_net(1)
    often: dict[str, Any] = {"directory": tmp_path, "checkpoint_every": 2}
    with pytest.raises(Interrupted):
        run(student, make_net(0), settings=settings(6, callbacks=(interrupt_at(3),), **often))
    moved = make_net(1)
    moved.load_state_dict(student.state_dict())
    with pytest.raises(CheckpointError, match="student_checksum"):
        run(moved, make_net(0), settings=settings(6, **often))
    run(student, make_net(0), settings=settings(6, **often))
    run(never_stopped, make_net(0), settings=settings(6))
    assert same_state(state(student), state(never_stopped))


def test_going_on_and_having_finished_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="taskprune")
    with pytest.raises(Interrupted):
        train(tmp_path, interrupt_at(3), checkpoint_every=1)
    assert not caplog.messages
    train(tmp_path, checkpoint_every=1)
    assert caplog.messages == [f"going on from step 2 of 14 in {tmp_path}"]
    train(tmp_path, checkpoint_every=1)
    assert caplog.messages[1:] == [f"already finished at step 14 in {tmp_path}"]


def scaled(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: factor * mse(a, b)


def with_default(a: Tensor, b: Tensor, factor: float = 1.0) -> Tensor:
    return factor * mse(a, b)


def test_functions_without_a_name_are_known_by_what_they_do() -> None:
    assert described(scaled(2.0)) == described(scaled(2.0)) != described(scaled(3.0))
    assert described(lambda a, b: mse(a, b)) != described(lambda a, b: pkd(a, b))
    assert described(lambda i: i + 1.0) != described(lambda i: i + 2.0)
    assert described(lambda i, by=1: i * by) != described(lambda i, by=2: i * by)
    assert described(partial(with_default, factor=2.0)) != described(partial(with_default))
    assert described(partial(scaled, 1.0)) != described(partial(scaled, 2.0))
    near, far = OnOutputs(lambda o: o["near"], mse), OnOutputs(lambda o: o["far"], mse)
    assert described(near) != described(far)
    assert described(mse) == "taskprune.distillation.losses.mse.mse"

    def again(n: int) -> int:
        return again(n - 1) if n else 0

    assert described(again) == described(again)


def test_what_grows_while_a_run_goes_on_is_no_part_of_it() -> None:
    calls: list[int] = []

    def loss() -> None:
        calls.append(1)

    before = described(loss)
    loss()
    assert described(loss) == before


def test_descriptions_are_the_same_in_every_process() -> None:
    code = (
        "from taskprune.distillation.identity import described\n"
        "f = lambda x, k=(1, 'a'): x in {'red', 'green', 'blue'} or [y for y in x]\n"
        "print(described(f))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_a_checksum_sees_values_not_layouts() -> None:
    net = make_net(1, norm=True)
    value = checksum(net)
    assert checksum(net.to(memory_format=torch.channels_last)) == value  # type: ignore[call-overload]
    assert checksum(make_net(1, norm=True).bfloat16()) != value
    with torch.no_grad():
        next(net.far.parameters()).add_(1e-3)
    assert checksum(net) != value
    assert checksum(make_net(1).to("meta")) == checksum(make_net(2).to("meta"))
