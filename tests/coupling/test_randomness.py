"""Evaluation that draws random numbers for channels keeps these; noise of training keeps none."""

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
from taskprune.testing import assert_permutation_invariant, randomise_

Work = Callable[[Tensor], Tensor]


class Noisy(nn.Module):
    """Eight channels, then six that meet random numbers."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work
        self.quiet, self.wide, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.work(self.wide(self.quiet(x).relu())).mean((2, 3)))


def attended(x: Tensor) -> Tensor:
    rows = x.flatten(2)[..., None]  # channels are heads
    return F.scaled_dot_product_attention(rows, rows, rows, dropout_p=0.5, scale=1.0).view_as(x)


def attended_rows(x: Tensor) -> Tensor:
    rows = x.flatten(2)  # channels are tokens
    return F.scaled_dot_product_attention(rows, rows, rows, dropout_p=0.5).view_as(x)


ON_CHANNELS: dict[str, Work] = {
    "gumbel_softmax": lambda x: x * F.gumbel_softmax(x, dim=1),
    "gumbel_softmax of another dim": lambda x: x * F.gumbel_softmax(x, dim=0),
    "rand_like": lambda x: x * torch.rand_like(x),
    "added": lambda x: x + torch.randn_like(x),
    "randint_like": lambda x: x * torch.randint_like(x, 3),
    "rand": lambda x: x * torch.rand(x.shape),
    "a number a channel": lambda x: x * torch.randn(x.shape[1])[:, None, None],
    "bernoulli": lambda x: x * torch.bernoulli(x.sigmoid()),
    "bernoulli of a number": lambda x: x * torch.bernoulli(x, 0.5),
    "bernoulli_": lambda x: x * torch.empty_like(x).bernoulli_(0.5),
    "normal": lambda x: torch.normal(x, 1.0),
    "normal of a spread": lambda x: torch.normal(x, x.abs()),
    "normal of a size": lambda x: x * torch.normal(0.0, 1.0, x.shape),
    "normal_": lambda x: x * x.new_empty(x.shape).normal_(),
    "uniform_": lambda x: x * torch.zeros_like(x).uniform_(),
    "exponential_": lambda x: x / (1 + torch.empty_like(x).exponential_()),
    "random_": lambda x: x * torch.empty_like(x).random_(0, 3),
    "of a distribution": lambda x: torch.distributions.Normal(x, 1.0).rsample(),
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout in place": lambda x: F.dropout(x.clone(), 0.5, inplace=True),
    "dropout of maps": lambda x: F.dropout2d(x, 0.5),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "native_dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "rrelu": lambda x: F.rrelu(x, training=True),
    "pooling at random": lambda x: F.fractional_max_pool2d(x, 2, output_size=2),
    "attention": attended,
    "attention between channels": attended_rows,
}


@pytest.mark.parametrize("work", ON_CHANNELS.values(), ids=ON_CHANNELS)
def test_channels_for_which_evaluation_draws_stay(work: Work) -> None:
    model, x = randomise_(Noisy(work), seed=0).double(), torch.randn(2, 3, 8, 8).double()
    groups = couple(trace(model, x))
    assert [group.n_channels for group in groups] == [8]
    reasons = {reason.detail for group in groups.frozen for reason in group.reasons}
    assert any("random numbers" in detail for detail in reasons), reasons
    assert_permutation_invariant(model, groups, None, x)
    result = taskprune.prune(model, ratio=0.1, example_inputs=x, importance="magnitude")
    assert result.plan.kept["quiet"] < 8


ELSEWHERE: dict[str, Work] = {
    "samples": lambda x: x * torch.rand(x.shape[0])[:, None, None, None],
    "space": lambda x: x * torch.rand(x.shape[2:]),
    "one for all channels": lambda x: x + torch.randn(x.shape[0], 1, *x.shape[2:]),
    "order of samples": lambda x: x[torch.randperm(x.shape[0])],
    "dropped paths": lambda x: x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.5),
    "no dropout": lambda x: F.dropout(x, 0.5, training=False),
    "none in native_dropout": lambda x: torch.native_dropout(x, 0.5, False)[0],
    "no slopes": lambda x: F.rrelu(x),
}


@pytest.mark.parametrize("work", ELSEWHERE.values(), ids=ELSEWHERE)
def test_random_numbers_for_other_things_keep_no_channels(work: Work) -> None:
    model, x = randomise_(Noisy(work), seed=0).double(), torch.randn(2, 3, 8, 8).double()
    groups = couple(trace(model, x))
    assert [group.n_channels for group in groups] == [8, 6]
    assert_permutation_invariant(model, groups, None, x)
    taskprune.prune(model, ratio=0.4, example_inputs=x, importance="magnitude")


def test_pooling_at_given_places_follows_the_samples() -> None:
    samples = torch.rand(2, 6, 2).double()
    groups = couple(
        trace(
            Noisy(
                lambda x: F.fractional_max_pool2d(x, 2, output_size=2, _random_samples=samples)
            ).double(),
            torch.randn(2, 3, 8, 8).double(),
        )
    )
    assert [group.n_channels for group in groups] == [8]


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
