"""The solver meets budgets exactly, in the right order, the same way every time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_groups import apart, chain, dropped_score, random_scores, scores_from

from taskprune.cost import CostModel
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InfeasibleBudgetError, InputError
from taskprune.importance.scores import ChannelScores
from taskprune.plan.plan import PruningPlan
from taskprune.solver import account, solve
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety

FREE = Safety(min_channels=1, max_removed=1.0, max_removed_private=1.0, protected_quantile=1.0)

widths_lists = st.lists(st.integers(1, 12), min_size=1, max_size=5)
budgets = st.sampled_from(
    [
        Budget(params=0.6),
        Budget(params=0.35),
        Budget(macs=0.5),
        Budget(params=0.7, macs=0.5),
        Budget(params=0.4, macs=0.8),
    ]
)


def limits_of(budget: Budget, plan: PruningPlan) -> dict[str, int]:
    return budget.limits({name: before for name, (before, _) in plan.costs.items()})


def fits(groups: CouplingGroups, kept: dict[str, int], limits: dict[str, int]) -> bool:
    models = {"params": CostModel.of_params(groups), "macs": CostModel.of_macs(groups)}
    return all(models[name].value(kept) <= limit for name, limit in limits.items())


@settings(deadline=None, max_examples=60)
@given(widths_lists, budgets, st.integers(0, 1000))
def test_the_budget_holds_and_nothing_dropped_could_have_stayed(
    widths: list[int], budget: Budget, seed: int
) -> None:
    groups = chain(widths, [2 ** (3 - i % 4) for i in range(len(widths))])
    try:
        plan = solve(groups, random_scores(groups, seed), budget, safety=FREE)
    except InfeasibleBudgetError:
        limits = budget.limits(
            {
                "params": CostModel.of_params(groups).value(),
                "macs": CostModel.of_macs(groups).value(),
            }
        )
        assert not fits(groups, {g.name: 1 for g in groups}, limits)
        return
    limits = limits_of(budget, plan)
    assert fits(groups, plan.kept, limits)
    for name in plan.drop:
        assert not fits(groups, plan.kept | {name: plan.kept[name] + 1}, limits)


@settings(deadline=None, max_examples=40)
@given(widths_lists, budgets, st.integers(0, 1000))
def test_costs_in_the_plan_are_those_of_its_counts(
    widths: list[int], budget: Budget, seed: int
) -> None:
    groups = chain([w + 4 for w in widths])
    try:
        plan = solve(groups, random_scores(groups, seed), budget, safety=FREE)
    except InfeasibleBudgetError:
        return
    for name, model in (
        ("params", CostModel.of_params(groups)),
        ("macs", CostModel.of_macs(groups)),
    ):
        assert plan.costs[name] == (model.value(), model.value(plan.kept))


@pytest.mark.parametrize("ratio", [0.05, 0.327, 0.5, 0.7])
@pytest.mark.parametrize("round_to", [1, 8])
def test_parameters_land_within_half_a_percent(ratio: float, round_to: int) -> None:
    groups = chain([32, 64, 64, 128, 96, 256, 40])
    plan = solve(
        groups, random_scores(groups), Budget.from_ratio(ratio), safety=Safety(round_to=round_to)
    )
    before, after = plan.costs["params"]
    assert ratio <= 1 - after / before <= ratio + 0.005


def lowest(
    groups: CouplingGroups, scores: ChannelScores, model: CostModel, limit: int, *, least: int = 0
) -> float:
    """Least total score dropped at a cost of ``least`` to ``limit``, by exhaustive search."""
    ordered = [np.sort(scores[g.name].total.numpy()) for g in groups]
    best = float("inf")
    for kept in product(*(range(1, g.n_channels + 1) for g in groups)):
        if least <= model.value(np.array(kept)) <= limit:
            lost = [own[: len(own) - k].sum() for own, k in zip(ordered, kept, strict=True)]
            best = min(best, float(sum(lost)))
    return best


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(2, 4), min_size=2, max_size=3),
    st.floats(0.5, 0.9),
    st.integers(0, 1000),
)
def test_with_equal_costs_it_equals_exhaustive_search(
    widths: list[int], remaining: float, seed: int
) -> None:
    groups = apart(widths, [7] * len(widths), [1] * len(widths))
    scores = random_scores(groups, seed)
    plan = solve(groups, scores, Budget(params=remaining), safety=FREE)
    limit = limits_of(Budget(params=remaining), plan)["params"]
    best = lowest(groups, scores, CostModel.of_params(groups), limit)
    assert dropped_score(plan, scores) == pytest.approx(best, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(2, 4), st.integers(1, 9)), min_size=2, max_size=3),
    st.floats(0.5, 0.9),
    st.integers(0, 1000),
)
def test_per_saving_it_is_within_one_channel_of_what_lands_as_near(
    shapes: list[tuple[int, int]], remaining: float, seed: int
) -> None:
    widths, sizes = [w for w, _ in shapes], [s for _, s in shapes]
    groups = apart(widths, [1] * len(widths), sizes)
    scores = random_scores(groups, seed)
    try:
        plan = solve(groups, scores, Budget(macs=remaining), safety=FREE)
    except InfeasibleBudgetError:
        return
    limit = limits_of(Budget(macs=remaining), plan)["macs"]
    largest = max(float(own.total.max()) for own in scores.groups.values())
    # Coarse channels give way to finer ones for the sake of the target, so it is compared with
    # what lands as near to the bound.
    best = lowest(groups, scores, CostModel.of_macs(groups), limit, least=plan.costs["macs"][1])
    assert best - 1e-12 <= dropped_score(plan, scores) <= best + largest + 1e-12


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(2, 4), min_size=2, max_size=3), st.floats(0.2, 0.9), st.integers(0, 1000)
)
def test_it_finds_a_plan_exactly_where_exhaustive_search_does(
    widths: list[int], remaining: float, seed: int
) -> None:
    groups = chain(widths, kernel=1, outputs=2)
    scores = random_scores(groups, seed)
    original = CostModel.of_params(groups).value()
    limit = Budget(params=remaining).limits({"params": original})["params"]
    best = lowest(groups, scores, CostModel.of_params(groups), limit)
    try:
        plan = solve(groups, scores, Budget(params=remaining), safety=FREE)
    except InfeasibleBudgetError:
        assert best == float("inf")
    else:
        assert dropped_score(plan, scores) >= best - 1e-12


def test_same_arguments_give_the_same_plan() -> None:
    groups = chain([16, 32, 24])
    scores = random_scores(groups)
    budget = Budget(params=0.6, macs=0.5)
    assert solve(groups, scores, budget).to_json() == solve(groups, scores, budget).to_json()


def test_ties_go_by_group_then_channel() -> None:
    groups = apart([4, 4], [5, 5], [1, 1])
    equal = scores_from({g.name: torch.ones(4, dtype=torch.float64) for g in groups})
    plan = solve(groups, equal, Budget(params=0.5), safety=FREE)
    assert plan.drop == {"g0": (0, 1, 2), "g1": (0,)}


@pytest.mark.parametrize("budget", [Budget(params=0.6), Budget(macs=0.6)], ids=str)
def test_multiplying_all_scores_changes_nothing(budget: Budget) -> None:
    groups = chain([16, 32, 24])
    scores = random_scores(groups)
    louder = scores_from({name: 4096 * own.total for name, own in scores.groups.items()})
    plans = [solve(groups, s, budget) for s in (scores, louder)]
    assert plans[0].drop == plans[1].drop


def test_with_parameters_bounded_the_lowest_scores_go() -> None:
    groups = apart([6, 6], [1, 1], [1, 1])
    scores = random_scores(groups, 3)
    plan = solve(groups, scores, Budget(params=0.5), safety=FREE)
    values = torch.cat([scores["g0"].total, scores["g1"].total])
    gone = sorted(float(scores[n].total[c]) for n, drop in plan.drop.items() for c in drop)
    assert gone == sorted(values.tolist())[:6]


@pytest.mark.parametrize("budget", [Budget(params=27), Budget(macs=27)], ids=str)
def test_channels_with_negative_scores_go_first(budget: Budget) -> None:
    groups = apart([4, 4], [1, 8], [1, 8])
    scores = scores_from(
        {
            "g0": torch.tensor([-1.0, 5, 5, 5], dtype=torch.float64),
            "g1": torch.tensor([-1.0, 5, 5, 5], dtype=torch.float64),
        }
    )
    plan = solve(groups, scores, budget, safety=FREE)
    assert plan.drop == {"g0": (0,), "g1": (0,)}


def test_a_budget_of_macs_leaves_groups_without_macs_alone() -> None:
    groups = apart([8, 8], [4, 4], [0, 6])
    scores = scores_from(
        {
            "g0": torch.zeros(8, dtype=torch.float64),
            "g1": torch.ones(8, dtype=torch.float64),
        }
    )
    plan = solve(groups, scores, Budget(macs=0.5), safety=FREE)
    assert plan.drop == {"g1": (0, 1, 2, 3)}


def test_with_macs_bounded_the_price_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # The wide late layers hold the parameters, the early ones the compute.
    groups = chain([16, 32, 128, 256], [4096, 1024, 64, 16])
    scores = random_scores(groups)
    by_price = solve(groups, scores, Budget(macs=0.6))
    monkeypatch.setattr(account, "price_power", lambda _: 0.0)
    by_score = solve(groups, scores, Budget(macs=0.6))
    assert by_price.costs["macs"][1] <= 0.6 * by_price.costs["macs"][0]
    assert dropped_score(by_price, scores) < 0.5 * dropped_score(by_score, scores)


def test_both_bounds_hold_and_the_tighter_one_is_met_closely() -> None:
    groups = chain([32, 64, 128, 256], [1024, 256, 64, 16])
    budget = Budget(params=0.6, macs=0.5)
    plan = solve(groups, random_scores(groups), budget)
    remaining = {name: after / before for name, (before, after) in plan.costs.items()}
    assert remaining["params"] <= 0.6
    assert remaining["macs"] <= 0.5
    assert max(remaining["params"] - 0.6, remaining["macs"] - 0.5) >= -0.005


def not_multiples(plan: PruningPlan, size: int) -> Sequence[str]:
    return [d.name for d in plan.groups if d.n_kept % size and d.drop]


def test_rounding_is_honoured_where_the_target_allows() -> None:
    groups = chain([64, 128, 256, 128, 50])
    plan = solve(groups, random_scores(groups), Budget.from_ratio(0.4), safety=Safety(round_to=8))
    assert len(not_multiples(plan, 8)) <= 1
    before, after = plan.costs["params"]
    assert 0.4 <= 1 - after / before <= 0.405


def test_rounding_gives_way_where_multiples_cannot_reach_the_target() -> None:
    groups = chain([24, 24])
    safety = Safety(min_channels=3, max_removed=1.0, protected_quantile=1.0, round_to=16)
    plan = solve(groups, random_scores(groups), Budget(params=0.12), safety=safety)
    before, after = plan.costs["params"]
    assert after <= 0.12 * before


def test_a_budget_that_holds_already_drops_nothing() -> None:
    groups = chain([8, 8])
    plan = solve(groups, random_scores(groups), Budget(params=1.0, macs=1.0))
    assert plan.drop == {}


def test_a_hundred_thousand_channels() -> None:
    groups = chain([1000] * 100, [1 + 1000 // (i + 1) for i in range(100)])
    plan = solve(groups, random_scores(groups), Budget(params=0.6, macs=0.4))
    remaining = {name: after / before for name, (before, after) in plan.costs.items()}
    assert remaining["macs"] == pytest.approx(0.4, abs=1e-5)
    assert remaining["params"] <= 0.6


def test_what_cannot_be_met_is_refused_with_what_can() -> None:
    groups = chain([20, 40], outputs=300)
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve(groups, random_scores(groups), Budget.from_ratio(0.95))
    message = str(caught.value)
    assert "Largest frozen group: `head` (300 channels, 12,000 parameters)" in message
    assert "an output of the model (net.py:7)" in message
    reachable = int(
        message.split("smallest reachable model has ")[1].split(" of ")[0].replace(",", "")
    )
    plan = solve(groups, random_scores(groups), Budget(params=reachable))
    assert plan.costs["params"][1] == reachable
    with pytest.raises(InfeasibleBudgetError):
        solve(groups, random_scores(groups), Budget(params=reachable - 1))


def test_a_model_without_prunable_groups_is_refused() -> None:
    groups = chain([20, 40])
    none = CouplingGroups((), groups.frozen, groups.shapes, groups.parameter_names)
    with pytest.raises(InfeasibleBudgetError, match=r"removes 0\.00%"):
        solve(none, scores_from({}), Budget.from_ratio(0.1))


def test_scores_of_other_groups_are_refused() -> None:
    groups = chain([8, 8])
    with pytest.raises(InputError, match="know no group `layer1`"):
        solve(groups, scores_from({"layer0": torch.ones(8)}), Budget(params=0.5))
    with pytest.raises(InputError, match="8 channels and 9 scores"):
        solve(
            groups,
            scores_from({"layer0": torch.ones(8), "layer1": torch.ones(9)}),
            Budget(params=0.5),
        )
