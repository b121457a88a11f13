"""Several bounds at once: all that bind are reached, the others cost nothing."""

from __future__ import annotations

import pytest
from synthetic_groups import apart, chain, dropped_score, random_scores

from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety

WIDTHS = [32, 64, 128, 256, 96]
PLACES = [4096, 1024, 256, 64, 16]


@pytest.mark.parametrize("params", [0.9, 0.7, 0.5])
@pytest.mark.parametrize("macs", [0.9, 0.7, 0.5])
def test_both_bounds_are_reached_or_the_looser_one_is_met_on_the_way(
    params: float, macs: float
) -> None:
    groups = chain(WIDTHS, PLACES)
    scores = random_scores(groups)
    plan = solve(groups, scores, Budget(params=params, macs=macs))
    left = {name: after / before for name, (before, after) in plan.costs.items()}
    misses = {"params": params - left["params"], "macs": macs - left["macs"]}
    assert min(misses.values()) >= 0
    for name, miss in misses.items():
        if miss > 0.005:
            (other,) = set(misses) - {name}
            single = {"params": Budget(params=params), "macs": Budget(macs=macs)}[other]
            alone = solve(groups, scores, single)
            before, after = alone.costs[name]
            assert after / before <= {"params": params, "macs": macs}[name] + 0.005


def test_a_bound_that_holds_already_changes_nothing() -> None:
    groups = chain(WIDTHS, PLACES)
    scores = random_scores(groups)
    alone = solve(groups, scores, Budget(params=0.7))
    assert solve(groups, scores, Budget(params=0.7, macs=1.0)).drop == alone.drop


def test_meeting_bounds_together_costs_no_more_than_one_after_the_other() -> None:
    free = Safety(min_channels=1, max_removed=1.0, protected_quantile=1.0)
    groups = apart([60, 60, 60], [9, 3, 1], [1, 3, 9])
    scores = random_scores(groups)
    plan = solve(groups, scores, Budget(params=0.6, macs=0.6), safety=free)
    for name, (before, after) in plan.costs.items():
        assert 0.6 - 0.02 <= after / before <= 0.6, name
    singles = [
        solve(groups, scores, budget, safety=free)
        for budget in (Budget(params=0.6), Budget(macs=0.6))
    ]
    assert all(dropped_score(plan, scores) >= dropped_score(s, scores) - 1e-9 for s in singles)
    union = {g.name: max((s.drop.get(g.name, ()) for s in singles), key=len) for g in groups}
    total = sum(float(scores[n].total[list(d)].sum()) for n, d in union.items())
    assert dropped_score(plan, scores) <= total
