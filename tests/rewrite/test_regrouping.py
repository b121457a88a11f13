"""Plans compose where groups form only once the first plan was carried out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taskprune
from taskprune import PruneSettings, Task
from taskprune.coupling import CouplingGroups, couple
from taskprune.graph import trace
from taskprune.plan.composition import REGROUPED, compose
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.rewrite import apply_plan
from taskprune.testing import randomise_

N_HEADS = 2


class Attention(nn.Module):
    """With one of two heads gone, the width of the other can shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, N_HEADS, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.inner(x)
        return self.out(self.attention(x, x, x, need_weights=False)[0])


X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomise_(Attention().double().eval(), seed=0)


def heads(groups: CouplingGroups) -> str:
    [name] = [g.name for g in groups if g.n_channels == N_HEADS]
    return name


def two_plans() -> tuple[nn.Module, PruningPlan, PruningPlan]:
    model = net()
    groups = couple(trace(model, X))
    first = build_plan(groups, {heads(groups): np.array([0])})
    smaller = couple(trace(apply_plan(model, first, example_inputs=X), X))
    second = build_plan(
        smaller,
        {g.name: np.array([1]) for g in smaller if first.kept.get(g.name) != g.n_channels},
    )
    assert second.drop
    return model, first, second


def test_the_composed_plan_does_what_both_do_in_turn() -> None:
    model, first, second = two_plans()
    in_turn = apply_plan(apply_plan(model, first), second)
    at_once = apply_plan(model, compose(first, second), example_inputs=X)
    assert in_turn.state_dict().keys() == at_once.state_dict().keys()
    torch.testing.assert_close(at_once(X), in_turn(X))


def test_regrouped_channels_are_told_apart_and_survive_json() -> None:
    _, first, second = two_plans()
    composed = compose(first, second)
    added = set(composed.drop) - set(first.drop)
    assert added
    assert all(name.endswith(REGROUPED) for name in added)
    assert PruningPlan.from_json(composed.to_json()) == composed


@pytest.mark.parametrize("steps", [3, 4])
def test_attention_can_be_pruned_in_steps(steps: int) -> None:
    tasks = {"a": Task(lambda out, _batch: out.square().mean(), outputs="output")}
    safety = taskprune.Safety(min_channels=1, max_removed=0.9)
    result = taskprune.prune(
        net(), tasks, 0.7, data=[(X, None)], settings=PruneSettings(steps=steps), safety=safety
    )
    assert result.report.verification is not None
    assert result.report.removed("params") >= 0.7


def heads_first(_model: nn.Module, groups: CouplingGroups, _evidence: Any) -> dict[str, Tensor]:
    return {g.name: torch.arange(g.n_channels) * float(g.n_channels > N_HEADS) for g in groups}


@pytest.mark.parametrize(("importance", "ratio"), [(heads_first, 0.8), ("random", 0.85)])
def test_what_formed_on_the_way_is_reported(importance: Any, ratio: float) -> None:
    tasks = {"a": Task(lambda out, _batch: out.square().mean(), outputs="output")}
    result = taskprune.prune(
        net(),
        tasks,
        ratio,
        data=[(X, None)],
        importance=importance,
        settings=PruneSettings(steps=2),
        safety=taskprune.Safety(min_channels=1, max_removed=0.95, protected_quantile=1.0),
    )
    assert any(name.endswith(REGROUPED) for name in result.plan.drop)
    assert any(line.name.endswith(REGROUPED) for line in result.report.groups)
    assert {why.group for why in result.plan.rationale} <= {d.name for d in result.plan.groups}
