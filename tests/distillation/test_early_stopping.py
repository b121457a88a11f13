from __future__ import annotations

import math
from pathlib import Path

import pytest
from distill_run import run, settings
from distill_toys import make_batches, make_net, make_tasks, near_loss, same_state, state
from torch import nn

from taskprune.calling.task import Task
from taskprune.distillation import (
    Callback,
    DistillResult,
    DistillSettings,
    EarlyStopping,
    StepRecord,
    Validation,
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


class Flat:
    """A metric that says the same each time."""

    def reset(self) -> None:
        pass

    def update(self, outputs: object, batch: object, /) -> None:
        pass

    def compute(self) -> float:
        return 1.0


VALIDATION = Validation({"near": Task(near_loss, metric=Flat())}, make_batches(1), every=2)


def stopped_by(figure: str, *callbacks: Callback, steps: int = 6) -> int:
    rule = EarlyStopping(figure, patience=1)
    student = make_net(1)
    before = state(student)
    changes = {"callbacks": callbacks, "early_stopping": rule}
    try:
        return len(run(student, make_net(0), settings=settings(steps, **changes)).history)
    except InputError:
        assert same_state(state(student), before)
        raise


def test_a_figure_that_no_callback_can_measure_is_refused() -> None:
    assert stopped_by("validation/near", VALIDATION) == 4
    with pytest.raises(InputError, match=r"`validation/naer`.*Found `validation/near`"):
        stopped_by("validation/naer", VALIDATION)
    with pytest.raises(InputError, match="Found no figures at all"):
        stopped_by("validation/near")


def test_a_figure_that_is_not_measured_is_named_once_and_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert stopped_by("lnae", measure) == 6
    first, last = caplog.messages
    assert "`lnae`, which was not measured in step 2" in first
    assert "Found `lane`." in first
    assert "`lnae` was not measured in this run. Found `lane`." in last
    caplog.clear()
    assert stopped_by("lnae", interrupt) == 6
    assert ["no figures at all" in message for message in caplog.messages] == [True]


def test_figures_that_come_later_than_others_stop_the_run(caplog: pytest.LogCaptureFixture) -> None:
    def parameters(record: StepRecord, student: nn.Module) -> dict[str, float]:
        return {"parameters": 7.0}

    assert stopped_by("validation/near", parameters, VALIDATION) == 4
    assert caplog.messages == []
    assert stopped_by("lane", parameters, measure, steps=8) == 6
    assert ["was not measured in step 1" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize("rule", [(0, 0.0), (1, -1.0), (1.5, 0.0)], ids=str)
def test_rules_that_make_no_sense_are_refused(rule: tuple[int, float]) -> None:
    with pytest.raises(InputError):
        EarlyStopping("lane", patience=rule[0], least_gain=rule[1])
