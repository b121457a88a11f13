from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distill_toys import make_batches, make_net, make_tasks

from taskprune.distillation import DistillResult, DistillSettings, OneCycle, Schedule, distill
from taskprune.errors import CheckpointError, InputError


def go(rate: float | Schedule, directory: Path | None = None) -> DistillResult:
    return distill(
        make_net(1),
        make_net(0),
        tasks=make_tasks(),
        data=make_batches(),
        taps=["stage"],
        settings=DistillSettings(steps=11, learning_rate=rate, cpu=True, directory=directory),
    )


def test_the_value_rises_and_falls_alike_and_ends_far_below_its_start() -> None:
    rate = OneCycle(2.0, steps=101, start=0.1, end=0.001, tail=0.2)
    values = [rate(step) for step in range(101)]
    assert values[0] == pytest.approx(0.2)
    assert values[40] == max(values) == 2.0
    assert values[20] == pytest.approx(values[60]) == pytest.approx(1.1)
    assert values[80] == pytest.approx(0.2)
    assert values[100] == rate(1000) == pytest.approx(0.002)
    assert values[:41] == sorted(values[:41])
    assert values[40:] == sorted(values[40:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_stay_in_range(steps: int) -> None:
    rate = OneCycle(1.0, steps=steps)
    assert all(3.9e-4 <= rate(step) <= 1.0 for step in range(steps + 2))


def test_the_learning_rate_of_each_step_is_the_schedules() -> None:
    rate = OneCycle(1e-2, steps=11)
    assert [r.learning_rate for r in go(rate).history] == [rate(step) for step in range(11)]


def test_a_run_with_another_schedule_is_refused(tmp_path: Path) -> None:
    go(OneCycle(1e-2, steps=11), tmp_path)
    go(OneCycle(1e-2, steps=11), tmp_path)
    with pytest.raises(CheckpointError, match="another run: `learning_rate`"):
        go(1e-2, tmp_path)


@pytest.mark.parametrize(
    "bad",
    [{"peak": 0.0}, {"steps": 0}, {"start": 0.1, "end": 0.2}, {"tail": 1.0}],
    ids=lambda bad: next(iter(bad)),
)
def test_values_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="`OneCycle` needs"):
        OneCycle(**{"peak": 1.0, "steps": 3, **bad})
