"""However the code says that two tensors come out in one size, their channels are one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.testing import assert_masked_equals_pruned, random_drop, randomise_

EXAMPLES = int(os.environ.get("TASKPRUNE_EXAMPLES", "0"))

Spelling: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Of a tensor and a map ``[batch, channels, height, width]``, something as large as the map."""

broadcast: Any = torch.broadcast_tensors

EXPANSIONS: dict[str, Spelling] = {
    "expand_as": lambda b, x: b.expand_as(x),
    "expand_as by name": lambda b, x: b.expand_as(other=x),
    "expand by shape": lambda b, x: b.expand(x.shape),
    "expand by sizes": lambda b, x: b.expand(*x.size()),
    "expand but channels": lambda b, x: b.expand(x.shape[0], -1, *x.shape[2:]),
    "broadcast_to": lambda b, x: torch.broadcast_to(b, x.shape),
    "broadcast_tensors": lambda b, x: broadcast(x, b)[1],
    "broadcast_tensors, the other first": lambda b, x: broadcast(b, x)[0],
    "broadcast_tensors of three": lambda b, x: broadcast(b.mean(1, True), b, x)[1],
    "view_as": lambda b, x: b.expand_as(x).flatten(1).view_as(x.flatten(1)).reshape_as(x),
    "added to zeros": lambda b, x: torch.zeros_like(x) + b,
    "copied": lambda b, x: torch.empty_like(x).copy_(b),
    "written to a slice": lambda b, x: _written(b, x),
}
OPERATORS: dict[str, Spelling] = {
    "where": lambda b, x: torch.where(x > 0, x, b),
    "lerp": lambda b, x: torch.lerp(x, b, 0.3),
    "lerp by weights": lambda b, x: torch.lerp(x, x.tanh(), b),
    "addcmul": lambda b, x: torch.addcmul(x, b, b, value=0.5),
    "addcdiv": lambda b, x: torch.addcdiv(x, b, b.abs() + 1),
    "clamp": lambda b, x: x.clamp(max=b),
    "ldexp": lambda b, x: torch.ldexp(x, b),
    "masked_fill": lambda b, x: x.masked_fill(b > 0, 0.5),
    "out": lambda b, x: torch.div(x, b.abs() + 1, out=torch.empty_like(x)),
    "out that grows": lambda b, x: torch.mul(x, b, out=torch.empty(0, dtype=x.dtype)),
    "cosine": lambda b, x: x * F.cosine_similarity(x, b, dim=1)[:, None],
}
SPELLINGS = {**EXPANSIONS, **OPERATORS}


def _written(b: Tensor, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[:, :] = b
    return y


class Broadcast(nn.Module):
    """What a spelling makes of a tensor and a map is read beside the map, not added to it."""

    def __init__(self, source: str, first: str, second: str) -> None:
        super().__init__()
        self.source, self.first, self.second = source, first, second
        self.make, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        if source == "parameter":
            self.register_parameter("scale", nn.Parameter(torch.ones(1, 8, 1, 1)))
        self.register_buffer("shift", torch.linspace(-1, 1, 8).view(1, 8, 1, 1))
        self.head = nn.Conv2d(24, 2, 1)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Any:
        x = self.make(image)
        other = self.other(image)
        sources: dict[str, Any] = {
            "parameter": getattr(self, "scale", None),
            "buffer": self.shift,
            "pooled map": other.mean((2, 3), keepdim=True),
            "map": other,
        }
        first = SPELLINGS[self.first](sources[self.source], x)
        second = SPELLINGS[self.second](first, x)
        return self.head(torch.cat([x, first, second], 1))


SOURCES = ("parameter", "buffer", "pooled map", "map")


def check(model: nn.Module, name: str, seed: int) -> None:
    """Assert that the group of this name can lose any channels."""
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    model = randomise_(model.double().eval(), seed)
    groups = couple(trace(model, x), strict=True)
    assert groups[name].n_channels == 8
    plan = build_plan(groups, random_drop(groups, 0.5, seed))
    report = assert_masked_equals_pruned(model, plan, x, groups=groups)
    assert report.max_relative_error < 1e-9


@settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.sampled_from(SOURCES),
    st.sampled_from(sorted(SPELLINGS)),
    st.sampled_from(sorted(SPELLINGS)),
    st.integers(0, 1000),
)
def test_what_comes_out_in_one_size_shrinks_alike(
    source: str, first: str, second: str, seed: int
) -> None:
    check(Broadcast(source, first, second), "make", seed)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("spelling", EXPANSIONS)
def test_what_is_expanded_to_a_map_has_its_channels(source: str, spelling: str) -> None:
    check(Broadcast(source, spelling, spelling), "make", seed=1)


class Grids(nn.Module):
    """Two parameters span a grid; one of the results alone is read."""

    def __init__(self, indexing: str, which: int) -> None:
        super().__init__()
        self.indexing, self.which = indexing, which
        self.make = nn.Conv2d(3, 8, 1)
        self.rows, self.columns = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(5))
        self.down, self.head = nn.Linear(5, 3), nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Any:
        grids = torch.meshgrid(self.rows, self.columns, indexing=self.indexing)
        grid = grids[self.which] if self.indexing == "ij" else grids[self.which].T
        x = self.make(image)
        both = torch.cat([x, self.down(grid).sum(1).view(1, -1, 1, 1).expand_as(x)], 1)
        return self.head(both)


@pytest.mark.parametrize("indexing", ["ij", "xy"])
@pytest.mark.parametrize("which", [0, 1])
def test_both_dims_of_a_grid_are_those_of_what_spans_it(indexing: str, which: int) -> None:
    check(Grids(indexing, which), "rows", seed=which)


def _copied(a: Tensor) -> Tensor:
    return (a[:, None] * a).copy_(a[:, None])


SPREAD: dict[str, Callable[[Tensor], Tensor]] = {
    "expand": lambda a: a[:, None].expand(-1, a.shape[0]),
    "broadcast_to": lambda a: a[:, None].broadcast_to(a.shape[0], a.shape[0]),
    "expand_as": lambda a: a[:, None].expand_as(a[:, None] * a),
    "broadcast_tensors": lambda a: broadcast(a[:, None], a)[0],
    "repeat": lambda a: a[:, None].repeat(1, a.shape[0]),
    "tile": lambda a: a[:, None].tile(1, a.shape[0]),
    "meshgrid": lambda a: torch.meshgrid(a, a.tanh(), indexing="ij")[0],
    "added": lambda a: a[:, None] + torch.zeros_like(a),
    "copied": _copied,
}


@pytest.mark.parametrize("how", SPREAD)
def test_what_is_the_same_along_channels_is_not_zero_without_them(how: str) -> None:
    """A sum over it counts channels, so the masked original says nothing."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            x = self.wide(x)
            return self.head(x) + SPREAD[how](x[0]).sum()

    model, x = randomise_(Counting(), seed=0), torch.randn(2, 3)
    groups = couple(trace(model, x))
    (group,) = groups
    assert group.crossed_by
    plan = build_plan(groups, random_drop(groups, 0.5, seed=0))
    assert_masked_equals_pruned(model, plan, x, groups=groups)
