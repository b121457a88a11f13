"""Noise of training keeps no channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import taskprune
from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.testing import randomise_

Work = Callable[[Tensor], Tensor]


class Noisy(nn.Module):
    """Eight channels, then six that meet random numbers."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work
        self.quiet, self.wide, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.work(self.wide(self.quiet(x).relu())).mean((2, 3)))


class InTraining(nn.Module):
    """Noise that only falls while training."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def forward(self, x: Tensor) -> Tensor:
        return self.work(x) if self.training else x


WHILE_TRAINING: dict[str, Work] = {
    "Dropout": nn.Dropout(),
    "Dropout2d": nn.Dropout2d(),
    "Dropout2d in place": nn.Sequential(nn.ReLU(), nn.Dropout2d(inplace=True)),
    "Dropout1d": nn.Sequential(nn.Flatten(2), nn.Dropout1d(), nn.Unflatten(2, (6, 6))),
    "Dropout3d": nn.Sequential(nn.Unflatten(2, (2, 3)), nn.Dropout3d(), nn.Flatten(2, 3)),
    "AlphaDropout": nn.AlphaDropout(),
    "FeatureAlphaDropout": nn.FeatureAlphaDropout(),
    "feature_dropout": InTraining(lambda x: torch.feature_dropout(x, 0.5, True)),
    "feature_dropout_": InTraining(lambda x: torch.feature_dropout_(x.clone(), 0.5, True)),
    "feature_alpha_dropout_": InTraining(
        lambda x: torch.feature_alpha_dropout_(x.clone(), 0.5, True)
    ),
    "RReLU": nn.RReLU(),
    "gumbel_softmax": InTraining(lambda x: x * F.gumbel_softmax(x, dim=1)),
    "pooling at random": InTraining(lambda x: F.fractional_max_pool2d(x, 2, output_size=2)),
    "noise": InTraining(lambda x: x + torch.randn_like(x)),
    "noise of a size": InTraining(lambda x: x + torch.normal(0.0, 1.0, x.shape)),
}


@pytest.mark.parametrize("work", WHILE_TRAINING.values(), ids=WHILE_TRAINING)
def test_noise_of_training_keeps_no_channels(work: Work) -> None:
    model, x = randomise_(Noisy(work), seed=0).double(), torch.randn(2, 3, 8, 8).double()
    groups = couple(trace(model, x, modes="both"))
    assert [group.n_channels for group in groups] == [8, 6]
    result = taskprune.prune(model, ratio=0.4, example_inputs=x, importance="magnitude")
    assert result.plan.kept["wide"] < 6
    assert result.model.train()(x).shape == (2, 2)
