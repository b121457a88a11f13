"""Non-dominated sorting against peeling by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from taskprune.errors import InputError
from taskprune.importance.aggregation import maximum, mean, pareto_rank, top_k
from taskprune.importance.pareto import FloatArray, front_numbers


def peeled(points: FloatArray) -> FloatArray:
    fronts = np.full(len(points), -1.0)
    number = 0
    while (fronts < 0).any():
        left = np.flatnonzero(fronts < 0)
        own = points[left]
        below = np.all(own[None] <= own[:, None], axis=2) & np.any(own[None] < own[:, None], axis=2)
        fronts[left[~np.any(below, axis=1)]] = number
        number += 1
    return fronts


@pytest.mark.parametrize("n_tasks", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("levels", [4, 1000])
def test_fronts_equal_those_of_peeling(n_tasks: int, levels: int) -> None:
    rng = np.random.default_rng(n_tasks)
    points = rng.integers(0, levels, (150, n_tasks)).astype(float)
    np.testing.assert_array_equal(front_numbers(points), peeled(points))


def test_the_fronts_of_no_channels_are_none() -> None:
    assert pareto_rank(torch.zeros(2, 0, dtype=torch.float64)).shape == (0,)


def test_the_scale_of_a_task_does_not_matter_to_its_rank() -> None:
    scores = torch.rand(3, 50, dtype=torch.float64)
    factors = torch.tensor([[1000.0], [1.0], [0.1]], dtype=torch.float64)
    assert torch.equal(pareto_rank(scores), pareto_rank(scores * factors))


def test_the_most_affected_tasks_count_in_top_k() -> None:
    scores = torch.tensor([[1.0, 4.0], [2.0, 0.0], [6.0, 2.0]], dtype=torch.float64)
    assert top_k(2)(scores).tolist() == [4.0, 3.0]
    assert torch.equal(top_k(1)(scores), maximum(scores))
    assert torch.equal(top_k(9)(scores), mean(scores))
    with pytest.raises(InputError, match="at least 1"):
        top_k(0)
