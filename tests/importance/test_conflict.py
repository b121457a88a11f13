"""Planted conflict ranks as predicted, and the report says where it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hand_made import TRUNK, batches, conflict_of, two_task_groups, two_task_net, two_tasks
from rich.console import Console
from torch import Tensor, nn

import taskprune
from taskprune.calling.task import Task
from taskprune.coupling import couple
from taskprune.errors import InputError
from taskprune.graph import trace
from taskprune.importance import (
    CosineConflict,
    EffectConflict,
    TaskTaylorImportance,
    TaylorImportance,
    as_they_are,
    conflict_report,
    score,
)
from taskprune.importance.aggregation import maximum, total

EFFECTS = {
    "helps both": (2.0, 2.0),
    "helps one": (1.5, 0.0),
    "fights": (2.0, -1.0),
    "fights hard": (2.0, -2.0),
    "little": (0.5, 0.5),
}
"""Per channel: by how much each task's loss would rise without it, per unit of its gate."""


class Planted(nn.Module):
    """Channels of which each adds a known amount to each task's loss.

    ``a`` makes every channel 1; task t reads channel c with weight -e_{t,c}, and its loss is what
    it reads. The weights that read give s = -e, and so do those that make: -2 e in all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(1, len(EFFECTS), bias=False)
        self.first = nn.Linear(len(EFFECTS), 1, bias=False)
        self.second = nn.Linear(len(EFFECTS), 1, bias=False)
        effects = torch.tensor(list(EFFECTS.values()))
        with torch.no_grad():
            self.a.weight.fill_(1)
            self.first.weight.copy_(-effects[:, 0])
            self.second.weight.copy_(-effects[:, 1])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.a(x)
        return {"A": self.first(x), "B": self.second(x)}


def planted_tasks() -> dict[str, Task]:
    return {
        "A": Task(lambda outputs, _: outputs["A"].mean()),
        "B": Task(lambda outputs, _: outputs["B"].mean()),
    }


def planted(weight: float) -> dict[str, float]:
    net, x = Planted(), torch.ones(2, 1)
    groups = couple(trace(net, x))
    criterion = TaskTaylorImportance(conflict_weight=weight, normalise=as_they_are)
    found = score(net, groups, planted_tasks(), [x], importance=criterion)
    return dict(zip(EFFECTS, found["a"].total.tolist(), strict=True))


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 2.0])
def test_a_planted_channel_scores_what_was_planted(weight: float) -> None:
    for name, (a, b) in EFFECTS.items():
        expected = 4 * (a * a + b * b - weight * max(0.0, -2 * a * b))
        assert planted(weight)[name] == pytest.approx(expected), name


def test_a_planted_fight_falls_behind_as_the_penalty_grows() -> None:
    def order(weight: float) -> list[str]:
        scores = planted(weight)
        return sorted(scores, key=lambda name: scores[name])

    assert order(0.0)[:3] == ["little", "helps one", "fights"]
    assert order(0.5)[:3] == ["little", "helps one", "fights"]
    assert order(0.9)[:3] == ["little", "fights hard", "fights"]
    assert order(1.0)[:3] == ["fights hard", "little", "fights"]
    assert order(1.25)[:3] == ["fights hard", "fights", "little"]


@pytest.mark.parametrize("conflict", [EffectConflict(), CosineConflict()])
@pytest.mark.parametrize("aggregate", [total, maximum])
def test_without_a_penalty_the_score_is_plain_taylor_to_the_bit(
    conflict: Any, aggregate: Any
) -> None:
    net, groups = two_task_net(), two_task_groups(two_task_net())
    criterion = TaskTaylorImportance(0.0, conflict, aggregate)
    found = score(net, groups, two_tasks(), batches(), importance=criterion)
    rows = {
        name: score(net, groups, {name: task}, batches(), importance=TaylorImportance())
        for name, task in two_tasks().items()
    }
    scales = TaskTaylorImportance(0.0, conflict, aggregate, as_they_are)
    plain = score(net, groups, two_tasks(), batches(), importance=scales)
    for group in groups:
        alone = torch.stack([rows[task][group.name].total for task in two_tasks()])
        assert torch.equal(plain[group.name].total, aggregate(alone))
        assert torch.equal(found[group.name].total, aggregate(found[group.name].per_task))


def test_pairs_add_up_to_the_conflict() -> None:
    net, groups = two_task_net(), two_task_groups(two_task_net())
    tasks = two_tasks() | {"third": Task(lambda o, _: -o["second"].sigmoid().mean())}
    for conflict in (EffectConflict(), CosineConflict()):
        criterion = TaskTaylorImportance(conflict=conflict)
        found = score(net, groups, tasks, batches(), importance=criterion)
        pairs = found[TRUNK].pair_conflict
        assert pairs is not None
        assert pairs.shape == (3, 8)
        assert torch.equal(pairs.sum(0), conflict_of(found, TRUNK))


def test_the_report_says_where_and_who() -> None:
    net, x = Planted(), torch.ones(2, 1)
    tasks = planted_tasks() | {"C": Task(lambda outputs, _: outputs["A"].mean())}
    groups = couple(trace(net, x, tasks={"A": ("A",), "B": ("B",)}))
    criterion = TaskTaylorImportance(normalise=as_they_are)
    scores = score(net, groups, tasks, [x], importance=criterion)
    report = conflict_report(groups, scores)
    assert report.pairs == (("A", "B"), ("A", "C"), ("B", "C"))
    (line,) = report.groups
    assert (line.group, line.tasks, line.n_channels) == ("a", ("A", "B"), 5)
    assert list(EFFECTS)[line.worst_channel] == "fights hard"
    importance = sum(2 * a * a + b * b for a, b in EFFECTS.values())
    assert line.pairs == pytest.approx((12 / importance, 0, 12 / importance))
    assert report.shares == pytest.approx(line.pairs)
    assert json.loads(report.to_json())["groups"][0]["group"] == "a"
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(report)
    assert "A × B" in capture.get()
    assert "whole model" in capture.get()


def test_scores_without_conflict_have_no_report() -> None:
    net = two_task_net()
    groups = two_task_groups(net)
    with pytest.raises(InputError, match="no conflict to report in scores by `magnitude`"):
        conflict_report(groups, score(net, groups, importance="magnitude"))


def test_the_result_of_pruning_reports_conflict() -> None:
    result = taskprune.prune(two_task_net(), two_tasks(), 0.3, data=batches())
    assert result.report.conflict == conflict_report(result.groups, result.scores)
    assert "Where tasks fight" in str(result)
    blind = taskprune.prune(
        two_task_net(), two_tasks(), 0.3, data=batches(), importance="magnitude"
    )
    assert blind.report.conflict is None
