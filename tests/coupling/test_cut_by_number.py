"""Pieces that are cut by their number shrink alike, whichever function cuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.testing import assert_masked_equals_pruned, random_drop, randomise_

CUTS: dict[str, Callable[[Tensor], Any]] = {
    "method": lambda x: x.tensor_split(2, dim=1),
    "function": lambda x: torch.tensor_split(x, 2, 1),
    "hsplit": lambda x: torch.hsplit(x, 2),
    "indices": lambda x: x.tensor_split([5], dim=1),
    "chunk": lambda x: x.chunk(2, 1),
}


class Halves(nn.Module):
    """Two halves, of which one goes through a layer of its own."""

    def __init__(self, how: str, width: int) -> None:
        super().__init__()
        self.cut = CUTS[how]
        sizes = [part.shape[1] for part in self.cut(torch.zeros(1, width, 1, 1))]
        self.spread, self.inner = nn.Conv2d(3, width, 1), nn.Conv2d(sizes[1], 4, 1)
        self.out = nn.Conv2d(sizes[0] + 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cut(self.spread(x))
        made: Tensor = self.out(torch.cat([a, self.inner(b)], 1))
        return made


@pytest.mark.parametrize("width", [10, 11])
@pytest.mark.parametrize("how", CUTS)
def test_what_is_cut_by_number_is_exact_whatever_goes(how: str, width: int) -> None:
    if how == "hsplit" and width % 2:
        pytest.skip("takes equal parts alone")
    model, x = randomise_(Halves(how, width).double().eval(), 0), torch.rand(2, 3, 4, 4).double()
    groups = couple(trace(model, x))
    assert len(groups) > 0
    for ratio in (0.2, 0.4, 0.6, 0.8):
        plan = build_plan(groups, random_drop(groups, ratio, seed=1))
        assert assert_masked_equals_pruned(model, plan, x, groups=groups).max_relative_error < 1e-9
    if width == 10 and how != "indices":
        free = sum(group.n_channels for group in groups if group.name.startswith("spread"))
        assert free == 5, "pairs of channels go together"
