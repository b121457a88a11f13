"""Time to quality: what is judged when, and that judging is off the clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import time_to_quality as benchmark
from torch import nn

from taskprune.distillation import StepRecord


class _Clock:
    """Processor time of a training whose steps take a second each."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _train(run: benchmark.Run, clock: _Clock) -> None:
    for step in range(1, 1000):
        clock.now += 1.0
        run(StepRecord(step, 0, 0.1, 1.0, {}, {}, {}, 1.0), nn.Identity())


def _run(monkeypatch: pytest.MonkeyPatch, *lost: float) -> tuple[benchmark.Run, _Clock]:
    clock, points = _Clock(), iter(lost)

    def judge(_model: nn.Module, _images: int) -> dict[str, float]:
        clock.now += 100.0
        return {"lane": 90 + next(points), "road": 90.0}

    monkeypatch.setattr("time.process_time", clock)
    subject: Any = SimpleNamespace(judge=judge)
    return benchmark.Run(subject, {"lane": 90.0, "road": 90.0}, 8, 30.0, seconds=7.0), clock


def test_a_run_ends_at_the_first_judgement_that_is_good_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, clock = _run(monkeypatch, -9.0, -4.0, -0.9)
    with pytest.raises(benchmark._Enough):
        _train(run, clock)
    assert [(steps, seconds) for steps, seconds, _ in run.curve] == [(5, 12), (10, 17), (20, 27)]
    cell = {"curve": run.curve}
    assert benchmark.seconds_to_quality(cell) == 27
    assert benchmark.worst(cell, 0) == pytest.approx(-9)


def test_a_run_whose_time_is_up_is_judged_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = _run(monkeypatch, *[-9.0] * 9)
    with pytest.raises(benchmark._Enough):
        _train(run, clock)
    assert [steps for steps, *_ in run.curve] == [5, 10, 20, 30]
    assert benchmark.seconds_to_quality({"curve": run.curve}) is None
