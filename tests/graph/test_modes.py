"""A pass that is only watched runs in its mode and moves no statistics."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from taskprune.restore.modes import set_mode_without_updates


def net() -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 1)
    )


def test_a_training_pass_leaves_all_buffers_as_they_are() -> None:
    model = net()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    set_mode_without_updates(model, "train")
    model(torch.rand(1, 3, 1, 1))  # a single value per channel, which BatchNorm would refuse
    assert model.training
    assert model[2].training
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert before.keys() >= {"1.running_mean", "0.parametrizations.weight.0._u"}


def test_evaluation_is_that_of_torch() -> None:
    model = net().train()
    set_mode_without_updates(model, "eval")
    assert not any(module.training for module in model.modules())
