"""Tasks weighed by what they lose of their metrics, so that none pays for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from front_nets import Batch, batches, same_weights, settled, two_task_net, two_tasks
from torch import Tensor, nn

import taskprune
from taskprune import Budget, PruneResult, PruneSettings, Task
from taskprune.calling.tolerances import worst_change
from taskprune.errors import InputError
from taskprune.report.record import PruneReport
from taskprune.testing import visible

HELD_OUT = batches(2, seed=7)


class Faithful:
    """How near an output stays to the original's, from 1 at best; a strict one falls faster."""

    def __init__(self, output: str, strict: float, original: nn.Module) -> None:
        self.output, self.strict, self.original = output, strict, original
        self.reset()

    def reset(self) -> None:
        self.errors: list[Tensor] = []

    def update(self, outputs: Any, batch: Batch, /) -> None:
        wanted = self.original(batch[0])[self.output]
        self.errors.append((outputs[self.output] - wanted).square().mean() / wanted.var())

    def compute(self) -> float:
        return 1 - self.strict * float(torch.stack(self.errors).mean())


def model() -> nn.Module:
    return two_task_net().eval()


def faithful(kind: float = 1.0, map: float = 1.0) -> dict[str, Task]:
    """Return both tasks, each with a metric of its own strictness."""
    strict = {"kind": kind, "map": map}
    original = model()
    return {
        name: replace(task, metric=Faithful(name, strict[name], original))
        for name, task in two_tasks().items()
    }


def pruned(tasks: dict[str, Task], **changes: Any) -> PruneResult:
    arguments: dict[str, Any] = {
        "data": batches(),
        "validation": HELD_OUT,
        "budget": Budget(params=0.5),
        **changes,
    }
    return taskprune.prune(model(), tasks, **settled(arguments))


def test_the_task_that_lost_most_counts_more_and_loses_less() -> None:
    result = pruned(faithful(map=4.0))
    first, *others = result.report.balance
    (kept,) = (tried for tried in result.report.balance if tried.kept)
    assert set(first.weights.values()) == {1.0}
    assert kept in others
    assert kept.weights["map"] > kept.weights["kind"]
    before = result.report.metrics
    assert worst_change(before, kept.metrics) > worst_change(before, first.metrics)
    assert kept.metrics == result.report.steps[-1].metrics


def test_losses_are_told_in_tolerances_where_every_task_has_one() -> None:
    allowed = {"kind": 1e-3, "map": 10.0}
    tasks = {name: replace(task, tolerance=allowed[name]) for name, task in faithful().items()}
    first, second, *_ = pruned(tasks).report.balance
    assert first.metrics["kind"] > first.metrics["map"]  # which counts more without
    assert second.weights == {"kind": 2.0, "map": 1.0}
    some = {**tasks, "map": replace(tasks["map"], tolerance=None)}
    assert pruned(some).report.balance[1].weights == {"kind": 1.0, "map": 2.0}


def test_what_is_kept_is_what_those_weights_lead_to() -> None:
    tasks = faithful(map=4.0)
    result = pruned(tasks)
    (kept,) = (tried for tried in result.report.balance if tried.kept)
    weighed = {name: replace(task, weight=kept.weights[name]) for name, task in tasks.items()}
    same = pruned(weighed, balance=0)
    assert same.report.balance == ()
    assert result.plan == same.plan
    assert same_weights(result.model, same.model)
    for group in result.groups:
        assert torch.equal(result.scores[group.name].total, same.scores[group.name].total)


def test_weights_of_the_user_are_what_it_starts_from() -> None:
    tasks = {n: replace(t, weight=2.0 * t.weight) for n, t in faithful(map=4.0).items()}
    double, single = pruned(tasks), pruned(faithful(map=4.0))
    assert double.plan.drop == single.plan.drop
    assert [t.weights for t in double.report.balance] == [t.weights for t in single.report.balance]


def test_steps_go_on_with_the_weights_of_the_step_before() -> None:
    result = pruned(faithful(map=4.0), steps=2)
    first, second = (
        [tried for tried in result.report.balance if tried.step == step] for step in (1, 2)
    )
    (kept,) = (tried for tried in first if tried.kept)
    assert second[0].weights == kept.weights
    assert [line.metrics for line in result.report.steps] == [
        tried.metrics for tried in (*first, *second) if tried.kept
    ]
    assert result.report.verification is not None


def without_a_metric(tasks: dict[str, Task]) -> dict[str, Task]:
    return {**tasks, "map": replace(tasks["map"], metric=None)}


class Lost(Faithful):
    """Knows nothing of any model."""

    def compute(self) -> float:
        return float("nan")


def with_an_unknown_metric(tasks: dict[str, Task]) -> dict[str, Task]:
    return {**tasks, "map": replace(tasks["map"], metric=Lost("map", 1.0, model()))}


@pytest.mark.parametrize(
    ("changes", "of"),
    [
        ({"balance": 0}, dict),
        ({"importance": "magnitude"}, dict),
        ({"between_steps": lambda *_: None}, dict),
        ({"validation": None}, dict),
        ({}, without_a_metric),
        ({}, with_an_unknown_metric),
    ],
    ids=["none asked", "blind", "trained", "no data", "no metric", "NaN"],
)
def test_where_losses_cannot_be_compared_tasks_count_as_they_are(
    changes: dict[str, Any], of: Callable[[dict[str, Task]], dict[str, Task]]
) -> None:
    tasks = of(faithful(map=4.0))
    result = pruned(tasks, **changes)
    assert len(result.report.balance) <= 1
    assert result.plan == pruned(tasks, **{**changes, "balance": 0}).plan


def test_nothing_is_tried_where_no_task_has_lost_anything() -> None:
    """Metrics that stay where they are."""
    result = pruned(faithful(kind=0.0, map=0.0))
    assert [tried.kept for tried in result.report.balance] == [True]


def test_tries_are_printed_and_read_again() -> None:
    result = pruned(faithful(map=4.0))
    assert "Tasks weighed by what they lost" in str(result)
    assert "weight of map" in str(result)
    page = result.to_html()
    assert "So that no task pays for another, map counts" in page
    assert page.count("weight of map") == 1 + len(result.report.balance)
    assert PruneReport.from_json(result.report.to_json()) == result.report
    assert result.scores.reweighted is None


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_an_error_on_the_way_leaves_the_model_as_it_was(fails_at: int) -> None:
    class Broken(Faithful):
        calls = 0

        def compute(self) -> float:
            Broken.calls += 1
            if Broken.calls == fails_at:
                raise ArithmeticError("measured")
            return super().compute()

    net = model()
    before = visible(net)
    tasks = faithful()
    tasks["map"] = replace(tasks["map"], metric=Broken("map", 4.0, model()))
    with pytest.raises(ArithmeticError, match="measured"):
        taskprune.prune(net, tasks, budget=Budget(params=0.5), data=batches(), validation=HELD_OUT)
    assert visible(net) == before


@pytest.mark.parametrize("tries", [-1, 1.5, True, "auto"])
def test_a_number_of_tries_is_a_whole_number(tries: Any) -> None:
    with pytest.raises(InputError, match=r"`balance` must be a whole number of at least 0\. Found"):
        PruneSettings(balance=tries)
