"""Groups whose channels go several at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_groups import apart, chain, random_scores

from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InfeasibleBudgetError
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.solver.removable import BoundLimit, bound_limits, removable
from taskprune.solver.safety import Safety

FREE = Safety(min_channels=1, max_removed=1.0, max_removed_private=1.0, protected_quantile=1.0)


def stepped(groups: CouplingGroups, steps: list[int]) -> CouplingGroups:
    own = zip(groups.groups, steps, strict=True)
    return replace(groups, groups=tuple(replace(group, step=step) for group, step in own))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(8, 40), st.sampled_from([1, 2, 4, 8])), min_size=1, max_size=4),
    st.sampled_from([0.4, 0.6, 0.8, 0.95]),
    st.sampled_from([1, 3, 4, 8]),
    st.integers(0, 100),
)
def test_no_group_ever_loses_part_of_a_step(
    sizes: list[tuple[int, int]], target: float, round_to: int, seed: int
) -> None:
    groups = stepped(chain([n for n, _ in sizes]), [step for _, step in sizes])
    safety = replace(FREE, round_to=round_to)
    try:
        plan = solve(groups, random_scores(groups, seed), Budget(params=target), safety=safety)
    except InfeasibleBudgetError:
        return
    for group in groups:
        assert (group.n_channels - plan.kept[group.name]) % group.step == 0
    before, after = plan.costs["params"]
    assert after <= target * before


def test_steps_are_as_near_to_the_target_as_their_size_allows() -> None:
    groups = stepped(apart([16, 16], [10, 1], [1, 1]), [4, 1])
    for target in np.linspace(0.3, 0.95, 14):
        plan = solve(groups, random_scores(groups, 0), Budget(params=float(target)), safety=FREE)
        before, after = plan.costs["params"]
        assert target - 40 / before <= after / before <= target


def test_what_a_step_holds_back_is_said() -> None:
    groups = stepped(chain([16, 16]), [8, 1])
    safety = Safety(min_channels=4, max_removed=0.75, protected_quantile=1.0)
    parts = removable(groups, random_scores(groups, 0), safety)
    assert bound_limits(parts, {"layer0": 8, "layer1": 4}, safety) == (
        BoundLimit("layer0", 8, "step"),
        BoundLimit("layer1", 4, "min_channels"),
    )


@pytest.mark.parametrize("round_to", [1, 8])
def test_a_step_that_does_not_fit_leaves_the_group_whole(round_to: int) -> None:
    groups = stepped(chain([12, 40]), [16, 1])
    safety = replace(FREE, round_to=round_to)
    plan = solve(groups, random_scores(groups, 1), Budget(params=0.6), safety=safety)
    assert plan.kept["layer0"] == 12
