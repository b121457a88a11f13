"""What torch does not show is frozen and named: arrays of NumPy, and function transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taskprune
from taskprune.cost import count_macs, measure_macs
from taskprune.coupling import couple
from taskprune.errors import UnsupportedOperatorError
from taskprune.graph import trace


def by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(2 * x.detach().numpy())


def by_array(x: Tensor) -> Tensor:
    return torch.as_tensor(np.tanh(np.asarray(x.detach())))


def by_list(x: Tensor) -> Tensor:
    return x * torch.tensor(x.mean((0, 2, 3)).tolist())[:, None, None]


def by_dlpack(x: Tensor) -> Tensor:
    return torch.from_numpy(np.from_dlpack(x.detach()).copy())


def by_vmap(x: Tensor) -> Tensor:
    mapped: Tensor = torch.vmap(
        lambda one: one.reshape(6, -1).softmax(-1).view_as(one) * one.shape[0]
    )(x)
    return mapped


def by_nested_vmap(x: Tensor) -> Tensor:
    mapped: Tensor = torch.vmap(torch.vmap(torch.tanh))(x)
    return mapped


def by_gradient(x: Tensor) -> Tensor:
    slope: Tensor = torch.func.grad(lambda y: y.square().sum())(x)
    return slope


WAYS: dict[Callable[[Tensor], Tensor], str] = {
    by_numpy: "`numpy`",
    by_array: "`__array__`",
    by_list: "`tolist`",
    by_dlpack: "`__dlpack__`",
    by_vmap: "torch.func.vmap",
    by_nested_vmap: "torch.func.vmap",
    by_gradient: "torch.func.grad",
}


class OutOfSight(nn.Module):
    """One layer is read out of sight, the one behind it is free."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.way(self.a(x))).relu())


def image() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_goes_out_of_sight_stays_and_is_named(way: Callable[[Tensor], Tensor]) -> None:
    model = OutOfSight(way).eval()
    groups = couple(trace(model, image()))
    assert {group.name: group.n_channels for group in groups} == {"b": 8}
    (frozen,) = [group for group in groups.frozen if group.name == "a"]
    assert frozen.reasons[0].kind == "unknown"
    assert WAYS[way] in frozen.reasons[0].detail
    assert "test_out_of_sight.py" in frozen.reasons[0].source
    before = model(image())
    result = taskprune.prune(model, None, 0.3, example_inputs=image(), importance="magnitude")
    assert result.plan.kept["b"] < 8
    assert torch.equal(model(image()), before)
    with pytest.raises(UnsupportedOperatorError, match=WAYS[way]):
        couple(trace(model, image()), strict=True)


class PerHead(nn.Module):
    """Layers that are mapped over a stack of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(3, 6), nn.Linear(8, 2)
        self.stack = nn.Parameter(torch.randn(4, 8, 6))

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        mapped = torch.vmap(nn.functional.linear, in_dims=(None, 0))(x, self.stack)
        return self.head(mapped.mean(0))


def test_weights_that_are_mapped_over_stay_too() -> None:
    model, x = PerHead(), torch.randn(5, 3)
    groups = couple(trace(model, x))
    assert len(groups) == 0
    assert any("torch.func.vmap" in r.detail for f in groups.frozen for r in f.reasons)


class Sensitive(nn.Module):
    """What a forward differentiates by: weights, inputs, or both."""

    def __init__(self, argnums: Any) -> None:
        super().__init__()
        self.argnums = argnums
        self.a, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.kernel = nn.Parameter(torch.randn(4, 6, 3, 3))

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        slope = torch.func.grad(
            lambda y, w: nn.functional.conv2d(y, w).square().sum(), argnums=self.argnums
        )(x, self.kernel)
        slopes = slope if isinstance(slope, tuple) else (slope,)
        return self.head(x * sum(s.sum() for s in slopes))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (PerHead(), torch.randn(5, 3)),
        *((Sensitive(by), torch.randn(2, 3, 5, 5)) for by in (0, 1, (0, 1))),
    ],
    ids=["mapped", "by input", "by weight", "by both"],
)
def test_work_that_nothing_can_shrink_is_part_of_the_cost(model: nn.Module, x: Tensor) -> None:
    assert count_macs(couple(trace(model, x))) == measure_macs(model, x)
