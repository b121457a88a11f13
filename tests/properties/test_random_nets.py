"""The laws of pruning over random architectures and random choices of channels.

``TASKPRUNE_EXAMPLES=2000`` runs that many examples in place of the fast, fixed sample.
"""

from __future__ import annotations

import copy
import os

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import SIZE, Net, build, nets
from torch import Tensor, nn

from taskprune.calling import flatten_outputs
from taskprune.coupling import couple
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

EXAMPLES = int(os.environ.get("TASKPRUNE_EXAMPLES", "0"))
sample = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def image() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def shapes(model: nn.Module, x: Tensor) -> dict[str, torch.Size]:
    with torch.no_grad():
        return {path: t.shape for path, t in flatten_outputs(model(x)).items()}


@sample
@given(nets(), st.sampled_from([0.2, 0.5, 0.8]), st.integers(0, 1000))
def test_a_random_net_can_lose_any_channels(net: Net, ratio: float, seed: int) -> None:
    model, x = randomise_(build(net), seed=seed), image()
    before, attributes = state(model), copy.copy(vars(model))
    groups = couple(trace(model, x))
    plan = build_plan(groups, random_drop(groups, ratio, seed))
    report = assert_masked_equals_pruned(model, plan, x, groups=groups)
    assert report.max_relative_error <= 1e-9
    for group in list(groups)[seed % 3 :: 3][:3]:
        assert assert_permutation_invariant(model, groups, group.name, x, seed=seed) <= 1e-9
    if all(layer.how != "einsum" for layer in net.layers):
        # Of a dim that shrank to length 1, einsum makes products that no counter takes for MACs.
        assert_cost_is_exact(model, groups, plan, x)

    smaller = apply_plan(model, plan, verify=False)
    again = apply_plan(build(net), PruningPlan.from_json(plan.to_json()), verify=False)
    again.load_state_dict(smaller.state_dict())
    assert shapes(smaller, x) == shapes(model, x)
    with torch.no_grad():
        for a, b in zip(
            flatten_outputs(smaller(x)).values(), flatten_outputs(again(x)).values(), strict=True
        ):
            assert torch.equal(a, b)
    after = state(model)
    assert vars(model) == attributes
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
