"""Weights that are made of several parameters: each of these reads what the weight reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskprune.coupling import couple
from taskprune.graph import trace


class Made(nn.Module):
    """A layer whose weight is made of two or three parameters."""

    def __init__(self, weight: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 6), nn.LazyLinear(2)
        self.one, self.two = (nn.Parameter(torch.randn(4, 6)) for _ in range(2))
        self.three = nn.Parameter(torch.randn(4, 6))
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(
            F.linear(self.embed(x), self.weight(self.one, self.two, self.three))
        )
        return made


SPELLINGS = {
    "side by side": lambda a, b, c: torch.cat([a, b, c]),
    "side by side, in turn": lambda a, b, c: torch.cat([torch.cat([a, b]), c]),
    "sum": lambda a, b, c: a + b + c,
    "product of entries": lambda a, b, c: a * b.sigmoid() * c,
    "stacked": lambda a, b, c: torch.stack([a, b, c]).flatten(0, 1),
    "choice": lambda a, b, c: torch.where(c > 0, a, b),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_parameter_of_a_weight_reads(spelling: str) -> None:
    x = torch.randn(2, 5)
    model = Made(SPELLINGS[spelling])
    model(x)
    groups = couple(trace(model, x))
    (embed,) = (g for g in groups if any(m.name == "embed.weight" for m in g.members))
    made = {m.name for m in embed.members if m.produces}
    assert made == {"embed.weight", "embed.bias"}
    assert {m.name for m in embed.members} - made == {"one", "two", "three"}


class GroupedOfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Conv1d(5, 8, 1), nn.Conv1d(6, 2, 1)
        self.one, self.two = (nn.Parameter(torch.randn(3, 4, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        made: Tensor = self.out(F.conv1d(x, torch.cat([self.one, self.two]), groups=2))
        return made


def test_each_group_of_a_convolution_that_is_put_together_reads() -> None:
    groups = couple(trace(GroupedOfTwo(), torch.randn(2, 5, 7)))
    (embed,) = (g for g in groups if any(m.name == "embed.weight" for m in g.members))
    assert {m.name for m in embed.members if not m.produces} == {"one", "two"}
