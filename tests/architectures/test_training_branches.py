"""Auxiliary heads run in training only: a pruned model must still be able to train."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from architectures.torchvision_import import import_torchvision

from taskprune.calling.outputs import flatten_outputs
from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.rewrite import apply_plan
from taskprune.testing import random_drop, randomise_

SIZES = {"googlenet": 64, "inception_v3": 299}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", SIZES)
def test_heads_for_training_shrink_with_the_trunk_whatever_the_mode(
    name: str, training: bool
) -> None:
    torch.manual_seed(0)
    model = import_torchvision().models.get_model(
        name, weights=None, init_weights=False, aux_logits=True, num_classes=10
    )
    model = randomise_(model, seed=0).train(training)
    inputs = torch.randn(2, 3, SIZES[name], SIZES[name])
    groups = couple(trace(model, inputs), strict=True)
    assert not groups.untraced
    smaller = apply_plan(model, build_plan(groups, random_drop(groups, 0.5, seed=1)), verify=False)
    assert model.training == smaller.training == training
    outputs = flatten_outputs(smaller.train()(inputs))
    assert all(tensor.shape == (2, 10) for tensor in outputs.values())
    assert len(outputs) > 1
    loss = torch.stack([tensor.square().mean() for tensor in outputs.values()]).sum()
    gradients = torch.autograd.grad(loss, list(smaller.parameters()))
    assert len(gradients) == len(list(smaller.parameters()))
