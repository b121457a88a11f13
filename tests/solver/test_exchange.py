"""A channel that holds much of the model does not go where finer ones meet the target."""

from __future__ import annotations

import pytest
import torch
from synthetic_groups import apart, scores_from

from taskprune import Budget, ChannelScores, Safety, solve

FREE = Safety(min_channels=1, max_removed=1.0, max_removed_private=1.0, protected_quantile=1.0)


def coarse_and_fine() -> ChannelScores:
    return scores_from(
        {
            "g0": torch.tensor([0.01, 0.02], dtype=torch.float64),
            "g1": 1 + torch.arange(200, dtype=torch.float64) / 1000,
        }
    )


@pytest.mark.parametrize("bound", ["params", "macs"])
def test_a_coarse_channel_with_the_lowest_score_is_exchanged(bound: str) -> None:
    # Two channels of the first group hold 80 % of everything; 200 fine ones the rest.
    groups = apart([2, 200], [4000, 10], [4000, 10])
    plan = solve(
        groups,
        coarse_and_fine(),
        Budget(params=0.9) if bound == "params" else Budget(macs=0.9),
        safety=FREE,
    )
    before, after = plan.costs[bound]
    assert 0.895 <= after / before <= 0.9
    assert plan.kept["g0"] == 2


def test_where_only_the_coarse_channel_can_save_enough_it_goes() -> None:
    groups = apart([2, 200], [4000, 10], [4000, 10])
    plan = solve(groups, coarse_and_fine(), Budget(params=0.7), safety=FREE)
    assert plan.kept == {"g0": 1, "g1": 200}


def test_a_landing_within_reach_is_left_alone() -> None:
    groups = apart([100, 100], [10, 10], [10, 10])
    fine = torch.arange(100, dtype=torch.float64)
    plan = solve(groups, scores_from({"g0": fine, "g1": fine}), Budget(params=0.5), safety=FREE)
    assert plan.kept == {"g0": 50, "g1": 50}
