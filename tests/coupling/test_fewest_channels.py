"""Widths below which an operator takes none are known to the groups and to the solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import taskprune
from taskprune import Safety
from taskprune.coupling import couple
from taskprune.graph import trace
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
