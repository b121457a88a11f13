"""What a library keeps of shapes, in files that the model's own file never names."""

from __future__ import annotations

from typing import Any

import kept_shapes
import pytest
import torch
from shape_users import shuffled
from torch import Tensor, nn

import taskprune
from taskprune.coupling import couple
from taskprune.graph import trace


class Shuffles(nn.Module):
    """Shuffles channels behind so many layers: the sizes come from other places each time."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(layers)))
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(shuffled(self.a(self.first(x)), 2)))


def image() -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("warm", [False, True])
def test_a_second_model_of_the_same_shapes_is_pruned_as_the_first(warm: bool) -> None:
    if warm:
        Shuffles(0)(image())
    for layers in (0, 1, 2):
        groups = couple(trace(Shuffles(layers), image()))
        assert groups["a"].n_channels == 4
        assert groups["b"].n_channels == 6
        result = taskprune.prune(
            Shuffles(layers), None, 0.2, example_inputs=image(), importance="magnitude"
        )
        assert result.report.removed("params") > 0.15


def test_caches_hold_what_they_held_and_nothing_of_a_trace() -> None:
    model = Shuffles(0)
    before = kept_shapes.kept()
    functions = kept_shapes._halves, vars(kept_shapes.Table)["ramp"]
    trace(model, image()[..., :3])
    assert kept_shapes.kept() == before
    assert (kept_shapes._halves, vars(kept_shapes.Table)["ramp"]) == functions
    assert type(model(image()[..., :3])) is Tensor
    assert kept_shapes.kept() == before + 2
