"""The laws of pruning over random architectures and random choices of channels.

``benchmarks/fuzzing.py`` goes through thousands of the same nets, and through more of each.
"""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from fuzzing_grammar import build
from torch import Tensor, nn

from taskprune.calling import flatten_outputs
from taskprune.coupling import couple
from taskprune.coupling.groups import FreezeKind
from taskprune.graph import trace
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.rewrite import apply_plan
from taskprune.testing import (
    assert_cost_is_exact,
    assert_masked_equals_pruned,
    assert_permutation_invariant,
    random_drop,
    randomise_,
)

KINDS = set(get_args(FreezeKind))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def shapes(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, torch.Size]:
    with torch.no_grad():
        return {path: t.shape for path, t in flatten_outputs(model(*inputs)).items()}


@pytest.mark.filterwarnings("ignore")  # of what people write all the same
@pytest.mark.parametrize("seed", range(60))
def test_a_random_net_can_lose_any_channels(seed: int) -> None:
    net = build(seed).double()
    inputs = tuple(x.double() for x in net.example)
    model = randomise_(net, seed=seed)
    before, attributes = state(model), copy.copy(vars(model))
    groups = couple(trace(model, inputs))
    assert {reason.kind for f in groups.frozen for reason in f.reasons} <= KINDS
    plan = build_plan(groups, random_drop(groups, (0.2, 0.5, 0.8)[seed % 3], seed))
    report = assert_masked_equals_pruned(model, plan, inputs, groups=groups)
    assert report.max_relative_error <= 1e-9
    for group in list(groups)[seed % 3 :: 3][:3]:
        assert assert_permutation_invariant(model, groups, group.name, inputs, seed=seed) <= 1e-9
    if "DynamicConv" not in net.kinds:  # torch counts no products along a length of 1 in einsum
        assert_cost_is_exact(model, groups, plan, inputs)

    smaller = apply_plan(model, plan, verify=False)
    fresh = build(seed).double()
    again = apply_plan(fresh, PruningPlan.from_json(plan.to_json()), verify=False)
    again.load_state_dict(smaller.state_dict())
    assert shapes(smaller, inputs) == shapes(model, inputs)
    with torch.no_grad():
        for a, b in zip(
            flatten_outputs(smaller(*inputs)).values(),
            flatten_outputs(again(*inputs)).values(),
            strict=True,
        ):
            assert torch.equal(a, b)
    after = state(model)
    assert vars(model) == attributes
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
