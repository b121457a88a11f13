"""Widths below which an operator takes none are known to the groups and to the solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import taskprune
from taskprune import Safety
from taskprune.coupling import couple
from taskprune.errors import InputError
from taskprune.graph import trace
from taskprune.plan.composition import compose
from taskprune.plan.plan import build_plan
from taskprune.testing import assert_masked_equals_pruned, random_drop, randomise_


class Projected(nn.Module):
    """An LSTM whose state is narrower than its cells."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 8, proj_size=3, batch_first=True, **options)
        self.head = nn.Linear(6 if self.layer.bidirectional else 3, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layer(x)[0])


pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

KINDS = pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2}, {"bidirectional": True}, {"bias": False}],
    ids=["plain", "two layers", "both ways", "no bias"],
)


@KINDS
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
def test_a_projected_lstm_keeps_more_cells_than_it_returns(
    options: dict[str, Any], ratio: float
) -> None:
    model, x = randomise_(Projected(**options), seed=0), torch.randn(2, 5, 6)
    groups = couple(trace(model, x))
    assert {group.fewest for group in groups if group.n_channels == 8} == {4}
    plan = build_plan(groups, random_drop(groups, ratio, seed=0))
    assert_masked_equals_pruned(model, plan, x, groups=groups)


def test_a_budget_leaves_a_projected_lstm_its_cells() -> None:
    model, x = randomise_(Projected(), seed=0), torch.randn(2, 5, 6)
    result = taskprune.prune(
        model,
        None,
        0.6,
        example_inputs=x,
        importance="magnitude",
        safety=Safety(min_channels=1, max_removed=1.0),
    )
    assert ("layer.weight_ih_l0", 4, "fewest") in {
        (bound.group, bound.n_kept, bound.limit) for bound in result.report.limits
    }
    result.model(x)


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1)


def ones(x: Tensor) -> Tensor:
    return torch.ones(x.shape[1], dtype=x.dtype, device=x.device)


NARROW: dict[str, Callable[[Tensor], Tensor]] = {
    "squeeze": lambda x: pooled(x).squeeze(),
    "squeeze of all dims": lambda x: pooled(x).squeeze((1, 2, 3)),
    "squeeze of channels": lambda x: x.squeeze(1).mean((2, 3)),
    "cov": lambda x: pooled(x).flatten(1) @ torch.cov(pooled(x).flatten(1).mT),
    "corrcoef": lambda x: pooled(x).flatten(1) @ torch.corrcoef(pooled(x).flatten(1).mT),
    "cov of observations": lambda x: x[:, :, 0, 0] + torch.cov(pooled(x).flatten(1)).sum(),
    "cov by correction": lambda x: x[:, :, 0, 0] + torch.cov(pooled(x)[0, :, 0, 0], correction=2),
    "cov by weights": lambda x: x[:, :, 0, 0] * torch.cov(x[0, :, 0, 0], aweights=ones(x)),
    "corrcoef of observations": lambda x: x[:, :, 0, 0] * torch.corrcoef(x[:, :, 1, 1]).mean(),
    "std": lambda x: standardised(x).mean((2, 3)),
    "var": lambda x: (x - x.var(1, keepdim=True)).mean((2, 3)),
    "var by correction": lambda x: (x - x.var(1, correction=2, keepdim=True)).mean((2, 3)),
    "var_mean": lambda x: (x - torch.var_mean(x, 1, keepdim=True)[0]).mean((2, 3)),
    "std_mean": lambda x: (x - torch.std_mean(x, 1, keepdim=True)[0]).mean((2, 3)),
}


class Narrow(nn.Module):
    """Channels that an operator takes another way once only one is left."""

    def __init__(self, work: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work
        self.wide, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.work(self.wide(x)))


@pytest.mark.parametrize("work", NARROW.values(), ids=NARROW)
def test_plans_made_by_hand_keep_them_too(work: Callable[[Tensor], Tensor]) -> None:
    groups = couple(trace(Narrow(work), torch.randn(2, 3, 6, 6)))
    group = groups["wide"]
    one_more = np.arange(group.n_channels - group.fewest + 1)
    with pytest.raises(InputError, match=f"`wide` to keep at least {group.fewest} of its 6"):
        build_plan(groups, {"wide": one_more})
    assert build_plan(groups, {"wide": one_more[1:]}).kept["wide"] == group.fewest


def test_plans_in_turn_keep_what_must_stay() -> None:
    model, x = randomise_(Projected(), seed=0), torch.randn(2, 5, 6)
    whole: taskprune.PruningPlan | None = None
    smaller: nn.Module = model
    for seed in range(3):
        groups = couple(trace(smaller, x))
        plan = build_plan(groups, random_drop(groups, 0.4, seed))
        whole = plan if whole is None else compose(whole, plan)
        smaller = taskprune.apply_plan(model, whole, example_inputs=x)
    assert smaller.layer.hidden_size == smaller.layer.proj_size + 1 == 2  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("work", NARROW.values(), ids=NARROW)
def test_operators_keep_the_channels_without_which_they_are_others(
    work: Callable[[Tensor], Tensor],
) -> None:
    model, x = randomise_(Narrow(work), seed=0), torch.randn(2, 3, 6, 6)
    groups = couple(trace(model, x))
    for group in groups:
        plan = build_plan(groups, random_drop(groups, 1.0, seed=0))
        assert plan.kept[group.name] == group.fewest > 1
        assert_masked_equals_pruned(model, plan, x, groups=groups)
        assert torch.isfinite(taskprune.apply_plan(model, plan, example_inputs=x)(x)).all()


def test_what_has_enough_entries_elsewhere_keeps_one_channel() -> None:
    def work(x: Tensor) -> Tensor:
        return (x / (x.std((1, 2, 3), keepdim=True) + 1)).mean((2, 3))

    groups = couple(trace(Narrow(work), torch.randn(2, 3, 6, 6)))
    assert [group.fewest for group in groups] == [1]
    groups = couple(trace(Narrow(lambda x: pooled(x).flatten(1)), torch.randn(2, 3, 6, 6)))
    assert [group.fewest for group in groups] == [1]


def by_spread(weight: Tensor) -> Tensor:
    return weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)


def by_batch_norm(weight: Tensor) -> Tensor:
    flat = weight.reshape(1, weight.shape[0], -1)
    return F.batch_norm(flat, None, None, training=True).reshape_as(weight)


@pytest.mark.parametrize("standardised", [by_spread, by_batch_norm])
@pytest.mark.parametrize(("kernel", "fewest"), [(1, 2), (3, 1)])
def test_a_standardised_kernel_keeps_two_entries(
    standardised: Callable[[Tensor], Tensor], kernel: int, fewest: int
) -> None:
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.inner = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, kernel)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Any:
            return self.head(F.conv2d(self.wide(x), standardised(self.inner.weight)))

    model, x = randomise_(Standardised(), seed=0), torch.randn(2, 3, 6, 6)
    groups = couple(trace(model, x))
    assert groups["wide"].fewest == fewest
    plan = build_plan(groups, random_drop(groups, 1.0, seed=0))
    assert_masked_equals_pruned(model, plan, x, groups=groups)


def test_channels_of_two_layers_count_on_each_other() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)
            self.head = nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Any:
            return self.head(pooled(torch.cat([self.one(x), self.two(x)], 1)).squeeze())

    model, x = randomise_(Joined(), seed=0), torch.randn(2, 3, 6, 6)
    groups = couple(trace(model, x))
    assert [group.fewest for group in groups] == [1, 1]
    plan = build_plan(groups, random_drop(groups, 1.0, seed=0))
    assert_masked_equals_pruned(model, plan, x, groups=groups)
