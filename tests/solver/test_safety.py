"""Limits hold whatever the scores say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_groups import chain, random_scores, scores_from, totals

from taskprune.coupling.groups import CouplingGroup, CouplingGroups, TensorSlice
from taskprune.errors import InfeasibleBudgetError, InputError
from taskprune.importance.scores import ChannelScores, GroupScores
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.solver.removable import BoundLimit, bound_limits, removable
from taskprune.solver.safety import DEVICE_MULTIPLES, Safety

TASKS = [["a", "b"], ["a", "b"], ["a"], ["b"]]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 30), min_size=4, max_size=4),
    st.integers(1, 6),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 100),
)
def test_no_group_loses_more_than_its_limits(
    widths: list[int], least: int, most: float, most_private: float, seed: int
) -> None:
    groups = chain(widths, tasks=TASKS)
    safety = Safety(least, most, most_private, protected_quantile=1.0)
    for part in removable(groups, random_scores(groups, seed), safety):
        n, gone = part.group.n_channels, len(part.order)
        private = len(part.group.tasks) == 1
        assert n - gone >= min(least, n)
        assert gone <= most * n + 1e-6
        assert not private or gone <= most_private * n + 1e-6


def test_a_wide_channel_counts_as_many() -> None:
    heads = np.arange(3 * 16, dtype=np.int64).reshape(3, 16)
    members = (TensorSlice("qkv.weight", 0, heads),)
    groups = CouplingGroups(
        groups=(CouplingGroup("qkv", 3, members, tasks=frozenset({"a"})),),
        frozen=(),
        shapes={"qkv.weight": (48, 8)},
        parameter_names=frozenset({"qkv.weight"}),
        tasks=("a",),
    )
    (part,) = removable(groups, random_scores(groups), Safety(protected_quantile=1.0))
    assert len(part.order) == 2


def test_a_head_with_the_lowest_scores_is_not_emptied() -> None:
    groups = chain([64, 64, 32, 32], tasks=TASKS)
    scores = random_scores(groups)
    total = totals(scores) | {"layer3": scores["layer3"].total * 1e-9}
    plan = solve(groups, scores_from(total), Budget.from_ratio(0.6))
    assert plan.kept["layer3"] == 32 - int(0.75 * 32)


def test_what_one_task_needs_most_stays_in_spite_of_a_penalty() -> None:
    groups = chain([40, 40], tasks=[["a", "b"], ["a", "b"]])
    per_task = {g.name: torch.rand(2, 40, dtype=torch.float64) for g in groups}
    per_task["layer0"][1, 17] = 50.0
    own = {name: GroupScores(rows.sum(0), rows) for name, rows in per_task.items()}
    own["layer0"].total[17] = -1.0  # as after a large conflict
    scores = ChannelScores("test", ("a", "b"), own)
    guarded = solve(groups, scores, Budget.from_ratio(0.5))
    free = solve(groups, scores, Budget.from_ratio(0.5), safety=Safety(protected_quantile=1.0))
    assert 17 not in guarded.drop["layer0"]
    assert 17 in free.drop["layer0"]


def test_a_single_row_of_scores_makes_no_budget_infeasible() -> None:
    """As where one wide group holds all of the highest scores, a residual stream by magnitude."""
    groups = chain([40, 40])
    total = {
        "layer0": 100 + torch.arange(40, dtype=torch.float64),
        "layer1": torch.arange(40, dtype=torch.float64),
    }
    plan = solve(groups, scores_from(total), Budget.from_ratio(0.8))
    assert plan.drop["layer0"] == tuple(range(len(plan.drop["layer0"])))


def test_a_task_protects_only_channels_that_it_can_reach() -> None:
    groups = chain([10, 10, 10, 10], tasks=TASKS)
    per_task = {g.name: torch.zeros(2, 10, dtype=torch.float64) for g in groups}
    for name in ("layer0", "layer1", "layer3"):
        per_task[name][1] = torch.arange(10)
    own = {name: GroupScores(rows.sum(0), rows) for name, rows in per_task.items()}
    scores = ChannelScores("test", ("a", "b"), own)
    parts = removable(groups, scores, Safety(1, 1.0, 1.0, protected_quantile=0.8))
    kept = {p.group.name: 10 - len(p.order) for p in parts}
    # Row b: the top fifth of thirty channels in three groups; row a is flat and protects none.
    assert kept == {"layer0": 2, "layer1": 2, "layer2": 1, "layer3": 2}


def test_limits_that_bind_are_reported() -> None:
    groups = chain([40, 6, 40, 40], tasks=TASKS)
    scores = random_scores(groups)
    safety = Safety(protected_quantile=1.0)
    most = {
        p.group.name: p.group.n_channels - len(p.order) for p in removable(groups, scores, safety)
    }
    assert bound_limits(removable(groups, scores, safety), most, safety) == (
        BoundLimit("layer0", 4, "min_channels"),
        BoundLimit("layer1", 4, "min_channels"),
        BoundLimit("layer2", 10, "max_removed_private"),
        BoundLimit("layer3", 10, "max_removed_private"),
    )
    assert bound_limits(removable(groups, scores, safety), groups.full_counts(), safety) == ()


def test_the_solver_logs_what_a_limit_held(caplog: pytest.LogCaptureFixture) -> None:
    groups = chain([64, 64, 32, 32], tasks=TASKS)
    scores = random_scores(groups)
    total = totals(scores) | {"layer3": scores["layer3"].total * 1e-9}
    with caplog.at_level("INFO", logger="taskprune"):
        solve(groups, scores_from(total), Budget.from_ratio(0.6))
    assert "`layer3` keeps 8 channels: held by max_removed_private" in caplog.text


def test_limits_never_give_way() -> None:
    groups = chain([20, 20])
    with pytest.raises(InfeasibleBudgetError, match=r"max_removed=0.5.*removes"):
        solve(groups, random_scores(groups), Budget.from_ratio(0.9), safety=Safety(max_removed=0.5))


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_channels": 0},
        {"min_channels": 2.5},
        {"round_to": 0},
        {"max_removed": 1.1},
        {"max_removed_private": -0.1},
        {"protected_quantile": float("nan")},
    ],
    ids=str,
)
def test_bad_limits_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        Safety(**arguments)


@pytest.mark.parametrize("device", DEVICE_MULTIPLES)
def test_a_device_stands_for_its_multiple(device: str) -> None:
    groups, safety = chain([128, 256, 192]), Safety(round_to=device)
    assert safety.multiple == DEVICE_MULTIPLES[device]
    budget = Budget.from_ratio(0.4)
    by_number = solve(
        groups, random_scores(groups), budget, safety=Safety(round_to=safety.multiple)
    )
    assert solve(groups, random_scores(groups), budget, safety=safety).drop == by_number.drop


def test_an_unknown_device_is_refused_with_those_known() -> None:
    with pytest.raises(InputError, match=r"one of 'tensor-core-fp16' \(8\).*Found 'abacus'"):
        Safety(round_to="abacus")
