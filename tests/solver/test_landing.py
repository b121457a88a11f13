"""Where steps are coarse, or save nothing one by one, budgets are still met as nearly as can be."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from synthetic_groups import apart, chain, random_scores, scores_from

from taskprune.cost import CostModel
from taskprune.cost.latency_cost import LatencyCost, SiteTable
from taskprune.coupling.groups import CouplingGroups, LinearForm
from taskprune.solver import solve
from taskprune.solver.account import Account
from taskprune.solver.budget import Budget
from taskprune.solver.infeasible import infeasible
from taskprune.solver.removable import BoundLimit, bound_limits, removable
from taskprune.solver.safety import Safety
from taskprune.solver.step_context import ALONE

FREE = Safety(min_channels=1, max_removed=1.0, max_removed_private=1.0, protected_quantile=1.0)
IN_EIGHTS = Safety(1, 1.0, 1.0, protected_quantile=1.0, round_to=8)


def coarse_first() -> tuple[CouplingGroups, dict[str, torch.Tensor]]:
    """Three groups whose channels have 60, 26 and 4 parameters; the coarse ones score lowest."""
    groups = apart([16, 16, 16], [60, 26, 4], [1, 1, 1])
    fine = torch.arange(16, dtype=torch.float64)
    return groups, {"g0": fine, "g1": 100 + fine, "g2": 200 + fine}


def test_where_no_multiples_land_near_the_target_finer_channels_help() -> None:
    groups, scores = coarse_first()
    cost, target = CostModel.of_params(groups), 0.7
    whole = cost.value()
    nearest = max(
        value
        for counts in product((8, 16), repeat=3)
        if (value := cost.value(np.array(counts))) <= target * whole
    )
    assert nearest / whole < target - 0.005
    plan = solve(groups, scores_from(scores), Budget(params=target), safety=IN_EIGHTS)
    before, after = plan.costs["params"]
    assert target - 0.005 <= after / before <= target


def test_where_multiples_land_near_the_target_all_groups_keep_one() -> None:
    groups, scores = coarse_first()
    plan = solve(groups, scores_from(scores), Budget(params=0.667), safety=IN_EIGHTS)
    assert plan.kept == {"g0": 8, "g1": 16, "g2": 16}


def test_a_group_that_only_its_multiple_holds_says_so() -> None:
    groups = chain([16, 16])
    safety = Safety(round_to=64, protected_quantile=1.0)
    parts = removable(groups, random_scores(groups), safety)
    assert bound_limits(parts, {"layer0": 12, "layer1": 4}, safety) == (
        BoundLimit("layer0", 12, "round_to"),
        BoundLimit("layer1", 4, "min_channels"),
    )


def switching(groups: CouplingGroups) -> LatencyCost:
    """Faster only where both layers are narrow, as where a library takes another kernel."""
    grid = np.array([[2.0, 4, 8, 12, 16]] * 2)
    times = np.full((5, 5), 1e6)
    times[:3, :3] = 4e5
    forms = (LinearForm(0, {"layer0": 1}), LinearForm(0, {"layer1": 1}))
    return LatencyCost(groups, (SiteTable(forms, grid, times),))


@pytest.mark.parametrize("safety", [FREE, IN_EIGHTS], ids=["single", "eights"])
def test_what_only_two_groups_together_can_save_is_found(safety: Safety) -> None:
    groups = chain([16, 16, 16])
    cost = switching(groups)
    plan = solve(
        groups,
        random_scores(groups),
        Budget(latency_ms=0.6),
        costs={"latency_ns": cost},
        safety=safety,
    )
    before, after = plan.costs["latency_ns"]
    assert after <= 0.6 * before
    assert plan.kept["layer2"] == 16
    assert "ms of latency" in str(plan.explain("layer0"))


def test_a_bound_that_is_missed_though_within_reach_is_told_as_well() -> None:
    groups, budget = chain([16, 16]), Budget(params=0.9)
    models = {"params": CostModel.of_params(groups)}
    parts = removable(groups, random_scores(groups), FREE)
    originals = {"params": models["params"].value()}
    account = Account(parts, models, budget.limits(originals))
    whole = f"{account.original['params']:,}"
    assert f"has {whole} of {whole}" in infeasible(groups, account, FREE, ALONE)
