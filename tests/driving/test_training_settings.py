"""The recipe: what it refuses, and the learning rate that follows from it."""

from __future__ import annotations

from typing import Any

import pytest

from taskprune.driving.training import TrainSettings
from taskprune.driving.training.settings import FINAL_LR_RATIO
from taskprune.errors import InputError


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"steps": 3, "minutes": 1.0},
        {"steps": 0},
        {"minutes": -1.0},
        {"steps": 3, "lr": 0.0},
        {"steps": 3, "batch_size": 0},
        {"steps": 3, "workers": -1},
        {"steps": 3, "warmup": 1.0},
        {"steps": 3, "average_decay": 1.5},
    ],
    ids=str,
)
def test_impossible_recipes_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"must .*Found"):
        TrainSettings(**values)


def test_the_rate_rises_then_falls_to_its_end() -> None:
    settings = TrainSettings(steps=100, lr=2.0, warmup=0.1)
    rates = [settings.learning_rate(step / 1000) for step in range(1001)]
    assert max(rates) == rates[100] == 2.0
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[0] > 0
    assert rates[-1] == pytest.approx(2.0 * FINAL_LR_RATIO)


def test_progress_counts_steps_or_the_clock() -> None:
    by_step, by_clock = TrainSettings(steps=10), TrainSettings(minutes=2.0)
    assert by_step.progress(5, 1e9) == 0.5
    assert by_clock.progress(10**9, 30.0) == 0.25
    assert by_step.progress(11, 0.0) == by_clock.progress(0, 121.0) == 1.0
