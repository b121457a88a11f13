from __future__ import annotations

import math

import numpy as np
import pytest

from taskprune.promise.betting import log_wealth, samples_needed, upper_bound

LEVEL = 0.05


def draws(kind: str, runs: int, n: int) -> np.ndarray:
    """Losses of up to 1 whose mean is 0.05. Shape ``[runs, n]``."""
    generator = np.random.default_rng(0)
    if kind == "rare":
        return np.where(generator.random((runs, n)) < 0.05, 1.0, 0.0)
    if kind == "both ways":
        return np.where(generator.random((runs, n)) < 0.525, 1.0, -1.0)
    return generator.uniform(-0.05, 0.15, (runs, n))


@pytest.mark.parametrize("kind", ["rare", "both ways", "near"])
def test_a_mean_that_is_not_below_is_rarely_taken_for_one(kind: str) -> None:
    wrong = [
        log_wealth(losses, 0.05, 1.0) >= math.log(1 / LEVEL) for losses in draws(kind, 400, 300)
    ]
    assert np.mean(wrong) <= LEVEL


@pytest.mark.parametrize("kind", ["rare", "both ways", "near"])
def test_the_bound_is_where_the_wealth_is_enough_and_the_order_does_not_matter(kind: str) -> None:
    (losses,) = draws(kind, 1, 300)
    bound = upper_bound(losses, 1.0, LEVEL)
    assert losses.mean() < bound <= 1
    assert log_wealth(losses, bound, 1.0) == pytest.approx(math.log(1 / LEVEL), abs=1e-4)
    assert upper_bound(np.sort(losses), 1.0, LEVEL) == pytest.approx(bound)
    assert upper_bound(losses, 1.0, 0.01) > bound


def test_means_above_a_small_loss_are_ruled_out_with_enough_samples() -> None:
    (losses,) = draws("near", 1, 2000)
    assert upper_bound(losses, 1.0, LEVEL) < 0.06


@pytest.mark.parametrize("mean", [0.06, 0.1, 0.3])
def test_as_many_samples_as_are_said_to_be_needed_are_enough(mean: float) -> None:
    (losses,) = draws("near", 1, 200)
    needed = samples_needed(losses, mean, 1.0, LEVEL)
    assert needed is not None
    like_these = np.resize(losses, needed + len(losses))
    assert log_wealth(like_these, mean, 1.0) >= math.log(1 / LEVEL)
    assert samples_needed(losses, 0.01, 1.0, LEVEL) is None


def test_nothing_can_be_said_with_fewer_samples_than_are_needed_at_least() -> None:
    least = samples_needed(np.zeros(1), 0.01, 1.0, LEVEL)
    assert least is not None
    # Were one sample in 1 / tolerance lost whole, so many would be spared with this probability.
    assert 0.99**least < LEVEL
    assert log_wealth(np.zeros(least), 0.01, 1.0) >= math.log(1 / LEVEL)
    assert log_wealth(np.zeros(least // 2), 0.01, 1.0) < math.log(1 / LEVEL)
    assert log_wealth(np.zeros(1), 1.0, 1.0) == math.inf
