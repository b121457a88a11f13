from __future__ import annotations

import math
from pathlib import Path

import pytest
from distill_toys import make_batches, make_net, make_tasks, same_state, state
from torch import nn

from taskprune.distillation import (
    DistillResult,
    DistillSettings,
    EarlyStopping,
    StepRecord,
    distill,
)
from taskprune.errors import InputError

FIGURES = {2: 1.0, 4: 2.0, 6: math.nan, 8: 2.05, 10: 9.0}


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


def measure(record: StepRecord, student: nn.Module) -> dict[str, float]:
    return {"lane": FIGURES[record.step]} if record.step in FIGURES else {}


def interrupt(record: StepRecord, student: nn.Module) -> None:
    if record.step == 7:
        raise Interrupted


def go(student: nn.Module, directory: Path | None = None, *more: object) -> DistillResult:
    return distill(
        student,
        make_net(0),
        tasks=make_tasks(),
        data=make_batches(),
        taps=["stage"],
        settings=DistillSettings(
            steps=20,
            cpu=True,
            directory=directory,
            checkpoint_every=3,
            callbacks=(measure, *more),  # type: ignore[arg-type]
            early_stopping=EarlyStopping("lane", patience=2, least_gain=0.1),
        ),
    )


def test_training_ends_when_patience_has_run_out() -> None:
    assert len(go(make_net(1)).history) == 8


def test_an_interrupted_run_stops_where_it_would_have_stopped(tmp_path: Path) -> None:
    whole, resumed = make_net(1), make_net(1)
    expected = go(whole)
    with pytest.raises(Interrupted):
        go(make_net(1), tmp_path, interrupt)
    history = [record.step for record in go(resumed, tmp_path).history]
    assert history == [record.step for record in expected.history]
    assert same_state(state(resumed), state(whole))
    again = make_net(1)
    go(again, tmp_path)
    assert same_state(state(again), state(whole))


@pytest.mark.parametrize("rule", [(0, 0.0), (1, -1.0), (1.5, 0.0)], ids=str)
def test_rules_that_make_no_sense_are_refused(rule: tuple[int, float]) -> None:
    with pytest.raises(InputError):
        EarlyStopping("lane", patience=rule[0], least_gain=rule[1])
