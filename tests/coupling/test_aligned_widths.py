"""Widths that an operator only takes in multiples are known to the groups and to the solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import taskprune
from taskprune.coupling import couple
from taskprune.errors import InputError
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.testing import random_drop, randomise_

pytestmark = pytest.mark.skipif(
    not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped products"
)


class Experts(nn.Module):
    """Each token goes through the two gated layers of one expert, by grouped products.

    Args:
        by_rows: Keep the weights as the product reads them, ``[experts, in, out]``; else turned.
    """

    def __init__(self, width: int = 32, inner: int = 48, *, by_rows: bool = False) -> None:
        super().__init__()
        self.by_rows = by_rows
        self.embed, self.head = nn.Linear(16, width), nn.Linear(width, 8)
        self.router = nn.Linear(width, 4)
        up, down = (4, width, 2 * inner), (4, inner, width)
        self.up = nn.Parameter(torch.randn(up if by_rows else (4, 2 * inner, width)) / 8)
        self.down = nn.Parameter(torch.randn(down if by_rows else (4, width, inner)) / 8)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        tokens = x.flatten(0, 1)
        expert = self.router(tokens).argmax(-1)
        order = expert.argsort(stable=True)
        ends = (expert[:, None] == torch.arange(4)).sum(0).cumsum(0).to(torch.int32)
        up, down = (self.up, self.down) if self.by_rows else (self.up.mT, self.down.mT)
        grouped: Any = torch._grouped_mm
        gate, value = grouped(tokens[order], up, offs=ends).chunk(2, -1)
        made = grouped(F.silu(gate) * value, down, offs=ends)
        return self.head(x + made[order.argsort()].view_as(x))


def tokens(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 12, 16, generator=generator).to(dtype)


def experts(dtype: torch.dtype, *, by_rows: bool) -> nn.Module:
    torch.manual_seed(0)
    return randomise_(Experts(by_rows=by_rows).to(dtype).eval(), seed=0)


DTYPES = {torch.float32: 4, torch.bfloat16: 8}
EVERY_FORM = [(dtype, by_rows) for dtype in DTYPES for by_rows in (False, True)]
FORMS = pytest.mark.parametrize(("dtype", "by_rows"), EVERY_FORM, ids=str)


@FORMS
def test_channels_of_a_grouped_product_go_by_sixteen_bytes(
    dtype: torch.dtype, by_rows: bool
) -> None:
    groups = couple(trace(experts(dtype, by_rows=by_rows), tokens(dtype)))
    assert {group.name: group.step for group in groups} == {
        "embed": DTYPES[dtype],
        "up": DTYPES[dtype],
    }


@FORMS
@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.45])
def test_experts_are_pruned_to_widths_that_run(
    dtype: torch.dtype, by_rows: bool, ratio: float
) -> None:
    result = taskprune.prune(
        experts(dtype, by_rows=by_rows),
        None,
        ratio,
        example_inputs=tokens(dtype),
        importance="magnitude",
    )
    assert all(n % DTYPES[dtype] == 0 for n in result.plan.kept.values())
    assert result.report.removed("params") > ratio - 0.01
    result.model(tokens(dtype))


def test_a_plan_of_widths_in_between_is_refused() -> None:
    model = experts(torch.float32, by_rows=False)
    groups = couple(trace(model, tokens(torch.float32)))
    with pytest.raises(InputError, match="go 4 at a time"):
        build_plan(groups, {"embed": [1, 2, 3]})  # type: ignore[dict-item]
    drop = random_drop(groups, 0.4, seed=0)
    assert {len(channels) % 4 for channels in drop.values()} == {0}
    taskprune.apply_plan(model, build_plan(groups, drop), example_inputs=tokens(torch.float32))
