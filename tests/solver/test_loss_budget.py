"""A limit on what the tasks' losses may rise by, to first order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_groups import chain, random_scores

from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InfeasibleBudgetError, InputError
from taskprune.importance.scores import ChannelScores, GroupScores
from taskprune.plan.plan import PruningPlan
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.solver.loss_budget import predicted_loss
from taskprune.solver.safety import Safety

TASKS = [["a", "b"], ["a", "b"], ["a"], ["b"]]
FREE = Safety(1, 1.0, 1.0, protected_quantile=1.0)


def scored(groups: CouplingGroups, seed: int = 0) -> ChannelScores:
    """Scores whose tasks pay the root of them; a task pays nothing for what it cannot reach."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for group in groups:
        own = torch.rand(2, group.n_channels, dtype=torch.float64, generator=generator) * 0.01
        reached = torch.tensor([[task in group.tasks] for task in ("a", "b")])
        rises = own * reached
        per_task = rises.square()
        found[group.name] = GroupScores(per_task.sum(0), per_task, loss_increase=rises)
    return ChannelScores("test", ("a", "b"), found)


def planned(
    limit: float | Mapping[str, float] | None,
    ratio: float,
    *,
    scores: ChannelScores | None = None,
    widths: Sequence[int] = (40, 40, 40, 40),
) -> tuple[PruningPlan, ChannelScores]:
    groups = chain(widths, tasks=TASKS)
    scores = scores or scored(groups)
    safety = replace(FREE, max_loss_increase=limit)
    return solve(groups, scores, Budget.from_ratio(ratio), safety=safety), scores


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(2, 30), min_size=4, max_size=4),
    st.floats(0, 0.3),
    st.floats(0, 0.3),
    st.floats(0.02, 0.6),
    st.integers(0, 100),
)
def test_no_task_loses_more_than_it_may(
    widths: list[int], a: float, b: float, ratio: float, seed: int
) -> None:
    groups = chain(widths, tasks=TASKS)
    scores = scored(groups, seed)
    try:
        plan, _ = planned({"a": a, "b": b}, ratio, scores=scores, widths=widths)
    except InfeasibleBudgetError:
        return
    predicted = predicted_loss(scores, plan.drop)
    assert predicted["a"] <= a + 1e-12
    assert predicted["b"] <= b + 1e-12


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    free, scores = planned(None, 0.3)
    predicted = predicted_loss(scores, free.drop)
    loose, _ = planned({task: rise * 1.01 for task, rise in predicted.items()}, 0.3)
    assert loose == free


def test_a_task_without_a_limit_pays_for_one_that_has() -> None:
    free, scores = planned(None, 0.3)
    before = predicted_loss(scores, free.drop)
    plan, _ = planned({"a": before["a"] / 2}, 0.3)
    after = predicted_loss(scores, plan.drop)
    assert after["a"] <= before["a"] / 2
    assert after["b"] > before["b"]


def test_where_one_task_has_nothing_left_only_what_costs_it_nothing_goes() -> None:
    plan, _ = planned({"a": 0.0}, 0.05)
    assert set(plan.drop) == {"layer3"}  # the only layer that task a cannot reach


def test_the_task_that_binds_is_on_record() -> None:
    plan, _ = planned({"a": 0.0}, 0.05)
    held = {why.group: why.held_by for why in plan.rationale}
    assert held == {
        "layer0": "max_loss_increase of a",
        "layer1": "max_loss_increase of a",
        "layer2": "max_loss_increase of a",
        "layer3": "",
    }


def test_one_number_is_for_every_task() -> None:
    assert planned(0.1, 0.2)[0] == planned({"a": 0.1, "b": 0.1}, 0.2)[0]


def test_what_no_task_can_afford_is_said_to_be_out_of_reach() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"max_loss_increase=0.001"):
        planned(0.001, 0.5)


@pytest.mark.parametrize("limit", [-0.1, float("nan"), "5 %", {"a": True}, {"a": float("inf")}])
def test_bad_limits_are_refused(limit: Any) -> None:
    with pytest.raises(InputError, match="`max_loss_increase` must be a fraction"):
        Safety(max_loss_increase=limit)


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(InputError, match=r"limits task `c`. The tasks are `a`, `b`"):
        planned({"a": 0.1, "c": 0.1}, 0.2)


def test_scores_that_say_nothing_of_losses_are_refused() -> None:
    groups = chain([20, 20, 20, 20], tasks=TASKS)
    with pytest.raises(InputError, match=r"needs a criterion that says.*'task_change'"):
        solve(
            groups,
            random_scores(groups),
            Budget.from_ratio(0.2),
            safety=Safety(max_loss_increase=0.1),
        )
