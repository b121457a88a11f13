"""`plan.explain` tells what happens to a module, and stays true when the plan was stored."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import taskprune
from taskprune.cost import count_macs, count_params
from taskprune.errors import InputError
from taskprune.front.result import PruneResult
from taskprune.plan.plan import PruningPlan
from taskprune.testing import randomise_


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.lane = nn.Conv2d(16, 2, 1)
        self.area = nn.Conv2d(16, 1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.norm(self.trunk(x)).relu()
        return {"lane": self.lane(x), "area": self.area(x)}


def pruned(ratio: float = 0.3, safety: taskprune.Safety | None = None) -> PruneResult:
    torch.manual_seed(0)
    model = randomise_(TwoHeads(), seed=0)
    tasks = {
        "lane": taskprune.Task(loss=lambda out, _batch: out["lane"].square().mean()),
        "area": taskprune.Task(loss=lambda out, _batch: out["area"].square().mean()),
    }
    data = [torch.randn(2, 3, 8, 8) for _ in range(3)]
    return taskprune.prune(model, tasks, ratio, data=data, safety=safety)


@pytest.fixture(scope="module")
def result() -> PruneResult:
    return pruned()


def test_says_which_channels_go_and_whose_importance(result: PruneResult) -> None:
    told = result.plan.explain("trunk")
    [group] = told.groups
    assert (group.role, group.name, group.drop) == ("makes", "trunk", result.plan.drop["trunk"])
    [why] = group.rounds
    for row, share in enumerate(why.shares):
        scores = result.scores["trunk"].per_task[row]
        assert share.task == result.scores.tasks[row]
        assert share.total == pytest.approx(float(scores.sum()))
        assert share.dropped == pytest.approx(float(scores[list(group.drop)].sum()))
    penalty = result.scores["trunk"].conflict
    assert penalty is not None
    assert why.conflict == pytest.approx(
        (float(penalty[list(group.drop)].sum()), float(penalty.sum()))
    )
    assert why.highest_dropped is not None
    assert why.highest_dropped <= why.lowest_kept


def test_savings_are_what_putting_the_channels_back_would_cost(result: PruneResult) -> None:
    [why] = result.plan.explain("trunk").groups[0].rounds
    kept = result.plan.kept
    back = {**kept, "trunk": 16}
    expected = {
        "params": count_params(result.groups, back) - count_params(result.groups, kept),
        "macs": count_macs(result.groups, back) - count_macs(result.groups, kept),
    }
    assert {saving.cost: saving.amount for saving in why.savings} == expected
    assert f"{expected['macs']:,} multiply-adds a batch" in str(result.plan.explain("trunk"))


def test_tensors_have_the_shapes_of_the_rewritten_model(result: PruneResult) -> None:
    real = {name: tuple(p.shape) for name, p in result.model.named_parameters()}
    for line in result.plan.explain("lane").tensors:
        assert line.after == real[line.name]


def test_a_reader_is_told_from_a_maker_and_frozen_outputs_say_why(result: PruneResult) -> None:
    told = result.plan.explain("lane")
    assert [group.role for group in told.groups] == ["reads"]
    assert [frozen.kind for frozen in told.frozen] == ["interface"]
    assert "'lane'" in str(told)


def test_names_the_limit_that_holds_the_rest() -> None:
    plan = pruned(0.62, taskprune.Safety(min_channels=6)).plan
    assert plan.explain("trunk").groups[0].rounds[0].held_by == "min_channels"
    assert "held by `min_channels`" in str(plan.explain("trunk"))


def test_stays_the_same_through_json(result: PruneResult) -> None:
    again = PruningPlan.from_json(result.plan.to_json())
    assert again == result.plan
    assert str(again.explain("trunk")) == str(result.plan.explain("trunk"))
    assert json.loads(again.explain("norm").to_json())["groups"][0]["name"] == "trunk"


@pytest.mark.parametrize("subject", ["trunk.weight", "norm.running_mean", "lane.bias", "trunk"])
def test_modules_tensors_and_groups_can_be_asked_for(result: PruneResult, subject: str) -> None:
    assert str(result.plan.explain(subject)).startswith(subject)


def test_an_unknown_name_is_refused_with_close_ones(result: PruneResult) -> None:
    with pytest.raises(InputError, match=r"Found `trnk`. Did you mean `trunk`"):
        result.plan.explain("trnk")
