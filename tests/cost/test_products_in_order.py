"""Chains of products whose order follows from their sizes cost at most what was predicted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import taskprune
from taskprune.cost import count_macs, measure_macs
from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.plan import build_plan
from taskprune.testing import assert_cost_is_exact, assert_masked_equals_pruned, random_drop

Chain = Callable[[Tensor, Tensor, Tensor], Tensor]

ORDERED: dict[str, Chain] = {
    "multi_dot": lambda x, a, b: torch.linalg.multi_dot([x, a, b, b.mT, b]),
    "chain_matmul": lambda x, a, b: torch.chain_matmul(x, a, b, b.mT, b),  # type: ignore[no-untyped-call]
}
AS_WRITTEN: dict[str, Chain] = {
    "one after the other": lambda x, a, b: x @ a @ b,
    "multi_dot of two": lambda x, a, b: torch.linalg.multi_dot([x, a]) @ b,
    "einsum of two": lambda x, a, b: torch.einsum("ij,jk->ik", x, a) @ b,
}


class Chained(nn.Module):
    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain
        self.wide, self.head = nn.Linear(4, 40), nn.Linear(50, 3)
        self.a, self.b = nn.Parameter(torch.randn(40, 30)), nn.Parameter(torch.randn(30, 50))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.chain(self.wide(x), self.a, self.b))


pytestmark = pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated")


@pytest.mark.parametrize("chain", ORDERED.values(), ids=ORDERED)
def test_products_in_the_cheapest_order_cost_at_most_what_was_predicted(chain: Chain) -> None:
    model, x = Chained(chain).double(), torch.randn(3, 4).double()
    groups = couple(trace(model, x))
    found = []
    for seed, ratio in enumerate((0.0, 0.5, 0.9, 0.95)):
        plan = build_plan(groups, random_drop(groups, ratio, seed))
        assert_masked_equals_pruned(model, plan, x, groups=groups)
        assert_cost_is_exact(model, groups, plan, x)
        measured = measure_macs(taskprune.apply_plan(model, plan), x)
        found.append((measured, count_macs(groups, plan.kept)))
    assert found[0][0] == found[0][1]
    assert all(measured <= predicted for measured, predicted in found)
    assert any(measured < predicted for measured, predicted in found)


@pytest.mark.parametrize("chain", AS_WRITTEN.values(), ids=AS_WRITTEN)
def test_products_in_the_order_written_cost_what_was_predicted(chain: Chain) -> None:
    model, x = Chained(chain).double(), torch.randn(3, 4).double()
    groups = couple(trace(model, x))
    assert {term.operator for term in groups.macs} <= {
        "aten.addmm.default",
        "aten.mm.default",
        "aten.bmm.default",
    }
    assert_cost_is_exact(model, groups, build_plan(groups, random_drop(groups, 0.9, 0)), x)
