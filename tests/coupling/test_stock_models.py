"""Whole architectures that nobody prepared for this: exact with every channel in play."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stock import import_torchvision

from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.plan import build_plan
from taskprune.testing import (
    assert_cost_is_exact,
    assert_masked_equals_pruned,
    random_drop,
    randomise_,
)

NAMES = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "densenet201",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False, "aux_logits": False},
    "inception_v3": {"init_weights": False, "aux_logits": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_half_of_all_channels_can_go(name: str) -> None:
    torch.manual_seed(0)
    options = OPTIONS.get(name, {})
    model = import_torchvision().models.get_model(name, weights=None, **options)
    model = randomise_(model.eval(), seed=0)
    size = 96 if name == "inception_v3" else 64
    inputs = torch.randn(1, 3, size, size)
    groups = couple(trace(model, inputs), strict=True)
    plan = build_plan(groups, random_drop(groups, 0.5, seed=1))
    assert_masked_equals_pruned(model, plan, inputs, groups=groups)
    assert_cost_is_exact(model, groups, plan, inputs)
    assert sum(group.n_channels for group in groups) > 1000
