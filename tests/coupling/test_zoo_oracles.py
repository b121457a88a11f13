"""The oracles over the zoo: what coupling says must be exactly what can be removed."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn
from zoo import ZOO, NetCase

from taskprune.coupling import CouplingGroups, couple
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.testing import (
    assert_cost_is_exact,
    assert_identity_plan,
    assert_masked_equals_pruned,
    assert_permutation_invariant,
    random_drop,
    randomise_,
)


@cache
def coupled(case: NetCase) -> tuple[nn.Module, CouplingGroups]:
    torch.manual_seed(0)
    model = randomise_(case.make().double().eval(), seed=0)
    graph = trace(model, case.inputs(), tasks=case.tasks)
    strict = "unknown" not in case.frozen and not graph.untraced
    return model, couple(graph, strict=strict)


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_every_net_has_the_channels_that_it_declares(case: NetCase) -> None:
    _, groups = coupled(case)
    found = {group.name: group.n_channels for group in groups}
    assert sum(found.values()) == case.channels, found


@pytest.mark.parametrize("case", [c for c in ZOO if c.frozen], ids=str)
def test_what_stays_says_why(case: NetCase) -> None:
    _, groups = coupled(case)
    reasons = {reason.kind: reason for group in groups.frozen for reason in group.reasons}
    assert case.frozen <= set(reasons)
    for kind in case.frozen:
        assert reasons[kind].detail
        assert "zoo" in reasons[kind].source


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("case", ZOO, ids=str)
def test_removing_channels_equals_zeroing_them(case: NetCase, ratio: float) -> None:
    model, groups = coupled(case)
    plan = build_plan(groups, random_drop(groups, ratio, seed=1))
    report = assert_masked_equals_pruned(model, plan, case.inputs(), groups=groups)
    assert report.max_relative_error < 1e-9


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_permuting_a_group_leaves_outputs_unchanged(case: NetCase) -> None:
    model, groups = coupled(case)
    for group in groups:
        error = assert_permutation_invariant(model, groups, group.name, case.inputs())
        assert error < 1e-9


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_costs_are_those_of_the_pruned_net(case: NetCase) -> None:
    model, groups = coupled(case)
    plan = build_plan(groups, random_drop(groups, 0.4, seed=2))
    assert plan.drop
    assert_cost_is_exact(model, groups, plan, case.inputs())


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_an_empty_plan_changes_nothing(case: NetCase) -> None:
    model, groups = coupled(case)
    assert not build_plan(groups, {}).drop
    assert_identity_plan(model, groups, case.inputs())
