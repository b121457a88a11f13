"""Every architecture of transformers: pruned to the asked ratio, exact, and usable afterwards."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from architectures import Architecture
from architectures.transformers_models import TRANSFORMERS_MODELS
from stock_case import StockCase, n_parameters, outputs_of, pruned, shared_names, stock_case

from taskprune.testing import assert_permutation_invariant

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of a library that is not ours
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
    ),
]

GENERATING = ("gpt2", "llama", "qwen3", "falcon", "bart", "t5", "mamba")
PERMUTED_GROUPS = 12
"""Groups whose channels are permuted; those of deep models repeat from block to block."""


@pytest.fixture(scope="module", params=TRANSFORMERS_MODELS, ids=str)
def case(request: pytest.FixtureRequest) -> StockCase:
    """One architecture after the other, for all tests."""
    architecture: Architecture = request.param
    return stock_case(architecture)


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_the_asked_share_goes_and_the_rest_is_exact(case: StockCase, ratio: float) -> None:
    smaller, _, report = pruned(case, ratio)
    assert ratio <= 1 - n_parameters(smaller) / n_parameters(case.model) < ratio + 0.005
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
