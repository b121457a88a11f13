"""Every architecture of transformers: pruned to the asked ratio, exact, and usable afterwards."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from architectures import Architecture
from architectures.transformers_models import TRANSFORMERS_MODELS
from stock_case import StockCase, outputs_of, pruned, shared_names, stock_case

from taskprune.cost import measure_params
from taskprune.errors import InfeasibleBudgetError
from taskprune.plan.plan import build_plan
from taskprune.rewrite import apply_plan
from taskprune.testing import assert_permutation_invariant, random_drop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of a library that is not ours
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
    ),
]

STAYS = {"transformers/longformer": 0.5}
"""Ratios out of reach: sliding windows cut by strides keep the heads and all they read."""

GENERATING = ("bart", "falcon", "gpt2", "llama", "qwen3", "t5")
PERMUTED_GROUPS = 12
"""Groups whose channels are permuted; those of deep models repeat from block to block."""


@pytest.fixture(scope="module", params=TRANSFORMERS_MODELS, ids=str)
def case(request: pytest.FixtureRequest) -> StockCase:
    """One architecture after the other, for all tests."""
    architecture: Architecture = request.param
    return stock_case(architecture)


def named(name: str) -> Architecture:
    return next(a for a in TRANSFORMERS_MODELS if a.name == f"transformers/{name}")


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_the_asked_share_goes_and_the_rest_is_exact(case: StockCase, ratio: float) -> None:
    if STAYS.get(case.name) == ratio:
        with pytest.raises(InfeasibleBudgetError):
            pruned(case, ratio)
        assert {r.kind for f in case.groups.frozen for r in f.reasons} == {"structure", "interface"}
        return
    smaller, _, report = pruned(case, ratio)
    assert ratio <= 1 - measure_params(smaller) / measure_params(case.model) < ratio + 0.005
    assert report.oracle in ("masked", "permutation")
    assert report.tolerance == 1e-9
    shapes = {path: tensor.shape for path, tensor in outputs_of(case.model, case.inputs).items()}
    assert {p: t.shape for p, t in outputs_of(smaller, case.inputs).items()} == shapes
    assert shared_names(smaller) == shared_names(case.model)


def test_permuting_groups_leaves_outputs_unchanged(case: StockCase) -> None:
    names = [group.name for group in case.groups]
    for name in names[:: -(-len(names) // PERMUTED_GROUPS)]:
        assert assert_permutation_invariant(case.model, case.groups, name, case.inputs) < 1e-9


def test_no_channel_stays_for_want_of_a_rule(case: StockCase) -> None:
    ignored = [r for group in case.groups.frozen for r in group.reasons if r.kind == "unknown"]
    assert not ignored


def test_a_pruned_model_takes_a_training_step(case: StockCase) -> None:
    smaller, _, _ = pruned(case, 0.3)
    optimizer = torch.optim.SGD(smaller.parameters(), lr=1e-4)
    before = [parameter.detach().clone() for parameter in smaller.parameters()]
    outputs = outputs_of(smaller.train(), case.inputs)
    losses = [tensor.square().mean() for tensor in outputs.values() if tensor.requires_grad]
    torch.autograd.backward(torch.stack(losses).sum())
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, smaller.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize("name", GENERATING)
def test_a_pruned_model_generates_the_same_with_and_without_a_cache(name: str) -> None:
    case = stock_case(named(name))
    smaller: Any = pruned(case, 0.3)[0].double()
    ids = case.inputs["input_ids"]
    fixed = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    cached = smaller.generate(ids, use_cache=True, **fixed)
    assert torch.equal(cached, smaller.generate(ids, use_cache=False, **fixed))
    assert cached.shape[1] > 6


def test_a_configuration_that_the_forward_reads_tells_the_new_sizes() -> None:
    case = stock_case(named("phi3"))
    plan = build_plan(case.groups, random_drop(case.groups, 0.5, seed=0))
    smaller: Any = apply_plan(case.model, plan, example_inputs=case.inputs, groups=case.groups)
    before: Any = case.model
    assert before.config.num_attention_heads == 4
    assert smaller.config.num_attention_heads == 2
    for layer in smaller.model.layers:
        assert layer.self_attn.config is smaller.config
        assert layer.self_attn.o_proj.in_features == 2 * layer.self_attn.head_dim
