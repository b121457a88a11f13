"""Pruning in several steps: one plan in the end, limits and tolerances for all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from front_nets import Batch, batches, same_weights, settled, two_task_net, two_tasks
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import taskprune
from taskprune import Budget, PruneResult, PruningPlan, Safety, Task
from taskprune.errors import InfeasibleBudgetError, InputError
from taskprune.front.job import choose
from taskprune.solver.loss_budget import predicted_loss
from taskprune.solver.step_context import StepContext
from taskprune.testing import assert_masked_equals_pruned, visible


class Given:
    """A metric that takes the values it was given, one by one."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def reset(self) -> None:
        """Nothing is kept."""

    def update(self, outputs: Any, batch: Batch, /) -> None:
        """Nothing is looked at."""

    def compute(self) -> float:
        return self.values.pop(0)


def watched(*values: float, tolerance: float | None = 1.5) -> dict[str, Task]:
    tasks = two_tasks()
    return {**tasks, "kind": replace(tasks["kind"], metric=Given(*values), tolerance=tolerance)}


def pruned(model: nn.Module | None = None, **changes: Any) -> PruneResult:
    arguments: dict[str, Any] = {
        "tasks": two_tasks(),
        "data": batches(),
        "budget": Budget(params=0.4),
        **changes,
    }
    return taskprune.prune(model or two_task_net(), arguments.pop("tasks"), **settled(arguments))


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def train_(step: int, model: nn.Module, plan: PruningPlan) -> None:
    """Move every weight a little, and leave the model in training mode."""
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


def test_one_step_is_what_pruning_was_before() -> None:
    plain = pruned()
    for result in (pruned(steps=1), pruned(steps=1, between_steps=lambda *_: None)):
        assert result.plan == plain.plan
        assert same_weights(result.model, plain.model)


@pytest.mark.parametrize(
    "budget", [Budget(params=0.4), Budget(macs=0.5), Budget(0.5, 0.5)], ids=str
)
def test_steps_end_in_one_plan_that_is_verified_against_the_original(budget: Budget) -> None:
    model = two_task_net().double().eval()
    data = [tuple(t.double() if t.is_floating_point() else t for t in b) for b in batches()]
    before = visible(model)
    result = pruned(model, data=data, budget=budget, steps=3, compensate=False)
    assert visible(model) == before
    assert result.report.verification is not None
    assert_masked_equals_pruned(model, result.plan, data[0][0], groups=result.groups)
    again = taskprune.apply_plan(model, result.plan, example_inputs=data[0][0])
    assert same_weights(again, result.model)
    whole = budget.limits({name: cost[0] for name, cost in result.plan.costs.items()}, batch_size=8)
    assert all(result.plan.costs[name][1] <= limit for name, limit in whole.items())


def test_every_step_is_compensated_and_verified_against_what_it_re_weighted() -> None:
    model = two_task_net().double().eval()
    data = [tuple(t.double() if t.is_floating_point() else t for t in b) for b in batches()]
    before = visible(model)
    result = pruned(model, data=data, steps=3)
    assert visible(model) == before
    assert result.report.verification is not None
    assert result.report.verification.max_relative_error < 1e-12
    sliced = taskprune.apply_plan(model, result.plan)
    assert {n: p.shape for n, p in sliced.named_parameters()} == {
        n: p.shape for n, p in result.model.named_parameters()
    }
    assert result.report.compensation is not None
    losses = result.report.compensation.losses.values()
    assert all(loss.compensated <= loss.sliced for loss in losses)


def test_the_number_of_steps_can_be_left_to_what_goes() -> None:
    result = pruned(budget=Budget(macs=0.6), steps="auto")
    assert len(result.report.steps) in (4, 5)  # 0.88 ** 4 is just below 0.6
    assert result.plan == pruned(budget=Budget(macs=0.6), steps=len(result.report.steps)).plan
    assert len(pruned(budget=Budget(macs=0.97), steps="auto").report.steps) == 1


def test_a_single_step_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a latency budget choosing measures."""
    calls = []

    def counted(*args: Any, **kwargs: Any) -> PruningPlan:
        calls.append(args)
        return choose(*args, **kwargs)

    monkeypatch.setattr("taskprune.front.steps.choose", counted)
    pruned(budget=Budget(macs=0.97), steps="auto")
    assert len(calls) == 1


@pytest.mark.parametrize("importance", ["output_change", "magnitude"])
def test_criteria_that_look_at_no_losses_compensate_by_those_of_the_tasks(importance: str) -> None:
    result = pruned(data=iter(batches()), importance=importance)
    assert result.report.compensation is not None
    assert result.report.compensation.losses.keys() == two_tasks().keys()


@pytest.mark.parametrize("steps", [1, 2])
def test_without_compensation_the_weights_that_stay_are_the_original_s(steps: int) -> None:
    model = two_task_net()
    result = pruned(model, steps=steps, compensate=False)
    assert result.report.compensation is None
    assert same_weights(result.model, taskprune.apply_plan(model, result.plan))


def test_every_step_removes_the_same_fraction_of_what_is_left() -> None:
    model = two_task_net()
    seen: list[int] = []
    result = pruned(model, steps=4, between_steps=lambda _, m, __: seen.append(size(m)))
    wanted = [size(model) * 0.4 ** (step / 4) for step in (1, 2, 3, 4)]
    assert all(0.97 * want <= got <= want for got, want in zip(seen, wanted, strict=True))
    assert [line.costs["params"] for line in result.report.steps] == seen
    assert size(result.model) == seen[-1] == result.report.costs["params"][1]


def test_batches_of_another_size_in_a_later_step_are_refused() -> None:
    budget, last = Budget(macs=0.5), StepContext(2, 2, original={"macs": 800}, batch_size=8)
    assert last.limits(budget, {"macs": 600}, batch_size=8) == {"macs": 400}
    with pytest.raises(InputError, match="Found 4 samples after 8: pass a `DataLoader`"):
        last.limits(budget, {"macs": 300}, batch_size=4)


def test_later_steps_score_what_is_left() -> None:
    # The composed plan is not the one-shot plan, and no scores but the first step's are of the
    # original's size.
    assert pruned(steps=4).plan.drop != pruned().plan.drop


def test_what_is_trained_between_steps_is_what_comes_out() -> None:
    seen: list[tuple[int, int]] = []

    def callback(step: int, model: nn.Module, plan: PruningPlan) -> None:
        seen.append(
            (
                step,
                size(model)
                - sum(
                    torch.Size(s).numel()
                    for n, s in plan.pruned_shapes.items()
                    if n in dict(model.named_parameters())
                ),
            )
        )
        train_(step, model, plan)

    model = two_task_net().eval()
    result = pruned(model, steps=3, between_steps=callback, compensate=False)
    assert seen == [(1, 0), (2, 0), (3, 0)]
    untrained = taskprune.apply_plan(model, result.plan)
    for (name, one), other in zip(
        untrained.named_parameters(), result.model.parameters(), strict=True
    ):
        torch.testing.assert_close(other, one * 1.01**3, msg=name)
    assert not any(module.training for module in result.model.modules())
    assert result.report.verification is not None
    assert any("each step was verified" in note for note in result.report.notes)


def test_limits_hold_for_all_steps_together() -> None:
    model = two_task_net()
    safety = Safety(min_channels=1, max_removed=0.5, max_removed_private=0.5)
    result = pruned(model, safety=safety, budget=Budget(params=0.5), steps=4)
    assert all(len(d.drop) <= d.n_channels / 2 for d in result.plan.groups)
    with pytest.raises(InfeasibleBudgetError, match=r"with Safety\(.*max_removed=0.5"):
        pruned(model, safety=safety, budget=Budget(params=0.1), steps=4)


def test_a_budget_out_of_reach_is_said_before_anything_is_trained() -> None:
    trained: list[int] = []
    with pytest.raises(InfeasibleBudgetError) as alone:
        pruned(budget=Budget(params=0.02), safety=Safety(protected_quantile=1.0))
    with pytest.raises(InfeasibleBudgetError) as in_steps:
        pruned(
            budget=Budget(params=0.02),
            safety=Safety(protected_quantile=1.0),
            steps=4,
            between_steps=lambda step, *_: trained.append(step),
        )
    assert trained == []
    assert str(in_steps.value) == str(alone.value)


def test_a_step_that_only_scores_make_impossible_is_named_beside_the_original() -> None:
    model, trained = two_task_net(), []
    with pytest.raises(InfeasibleBudgetError) as error:
        pruned(
            model,
            budget=Budget(params=0.3),
            safety=Safety(protected_quantile=0.0),
            steps=2,
            between_steps=lambda step, *_: trained.append(step),
        )
    message = str(error.value)
    assert message.startswith(f"Step {len(trained) + 1} of 2: At most ")
    assert f" of {size(model):,}, which removes" in message


def test_a_broken_tolerance_undoes_the_step_and_names_the_task() -> None:
    model = two_task_net()
    result = pruned(
        model, tasks=watched(9, 8, 7.4, 0, tolerance=1.5), validation=batches(1), steps=3
    )
    assert [line.undone for line in result.report.steps] == [False, True]
    assert [dict(line.metrics) for line in result.report.steps] == [{"kind": 8}, {"kind": 7.4}]
    (broken,) = result.report.broken
    assert (broken.task, broken.step, broken.before, broken.after) == ("kind", 2, 9, 7.4)
    assert size(result.model) == result.report.steps[0].costs["params"]
    text = str(result)
    assert "Stopped at step 2: `kind` fell from 9 to 7.4 and may lose 1.5" in text
    assert "undone" in text
    assert json.loads(result.report.to_json())["broken"][0]["task"] == "kind"


def test_what_was_trained_before_the_undone_step_comes_back() -> None:
    kept: list[dict[str, torch.Tensor]] = []

    def callback(step: int, model: nn.Module, plan: PruningPlan) -> None:
        train_(step, model, plan)
        kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    result = pruned(
        tasks=watched(9, 9, 9, 0), validation=batches(1), steps=4, between_steps=callback
    )
    assert len(kept) == 3
    state = result.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in kept[1].items())
    assert {name: tuple(t.shape) for name, t in state.items()} == result.plan.pruned_shapes


def test_where_the_first_step_breaks_a_tolerance_nothing_goes() -> None:
    model = two_task_net()
    result = pruned(model, tasks=watched(9, float("nan")), validation=batches(1))
    assert result.plan.drop == {}
    assert same_weights(result.model, model)
    assert result.model is not model
    assert result.report.removed("params") == 0


def test_tolerances_that_hold_change_nothing() -> None:
    watching = pruned(tasks=watched(9, 8.5, 8, 7.5), validation=batches(1), steps=3)
    assert watching.plan == pruned(steps=3).plan
    assert watching.report.broken == ()
    assert "kind" in str(watching)


def test_a_tolerance_is_judged_after_training() -> None:
    order: list[str] = []

    class Told(Given):
        def compute(self) -> float:
            order.append("measured")
            return 1.0

    tasks = two_tasks()
    tasks["kind"] = replace(tasks["kind"], metric=Told(), tolerance=0.1)
    pruned(
        tasks=tasks,
        validation=batches(1),
        steps=2,
        between_steps=lambda *_: order.append("trained"),
    )
    assert order == ["measured", "trained", "measured", "trained", "measured"]


FEW = TensorDataset(torch.ones(1, 3, 8, 8))  # less than a batch


class Stream(IterableDataset[Batch]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[Batch]:
        return iter(batches(1))


def test_a_loader_of_a_stream_is_watched() -> None:
    loader = DataLoader(Stream(), batch_size=None)
    result = pruned(tasks=watched(9, 7), validation=loader)
    assert [broken.task for broken in result.report.broken] == ["kind"]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_tolerance_that_nothing_checks_is_said(
    steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="taskprune"):
        result = pruned(tasks=watched(tolerance=0.5), steps=steps)
    (note,) = [note for note in result.report.notes if "Not checked" in note]
    assert "tolerance of `kind`" in note
    assert [record.getMessage() for record in caplog.records].count(note) == 1
    assert result.plan == pruned(steps=steps).plan


def test_a_tolerance_that_is_checked_is_not_said_to_be_missing() -> None:
    result = pruned(tasks=watched(9, 9, 9), validation=batches(1), steps=2)
    assert not any("Not checked" in note for note in result.report.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "`steps` must be a whole number"),
        ({"steps": 2.0}, "`steps` must be a whole number"),
        ({"steps": 2, "data": iter(batches())}, "goes through `data` more than once"),
        ({"steps": 2, "between_steps": 3}, "`between_steps` must be a function"),
        ({"validation": batches(1)}, "no task has a metric"),
        ({"validation": [], "tasks": watched(1)}, "holds no batch"),
        ({"validation": DataLoader(FEW, 2, drop_last=True), "tasks": watched(1)}, "holds no batch"),
        (
            {"validation": iter(batches(1)), "tasks": watched(1)},
            "one pass only: pass a list of batches",
        ),
        (
            {
                "validation": batches(1),
                "tasks": {"kind": replace(two_tasks()["kind"], tolerance=0.5)},
            },
            "has a tolerance of 0.5 but no `metric`",
        ),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pruned(**changes)


@pytest.mark.parametrize("steps", [1, 3])
def test_what_the_losses_may_rise_by_binds_and_is_reported(steps: int) -> None:
    budget = Budget(params=0.9)
    taylor: dict[str, Any] = {"importance": "task_taylor"}
    free = pruned(budget=budget, safety=Safety(protected_quantile=1.0), **taylor)
    allowed = 0.7 * predicted_loss(free.scores, free.plan.drop)["kind"]
    safety = Safety(protected_quantile=1.0, max_loss_increase={"kind": allowed})
    result = pruned(budget=budget, steps=steps, safety=safety, **taylor)
    if steps == 1:
        assert predicted_loss(result.scores, result.plan.drop)["kind"] <= allowed
    assert result.plan.drop != free.plan.drop
    bound = [b for b in result.report.limits if b.limit == "max_loss_increase of kind"]
    assert bound
    assert "max_loss_increase of kind" in str(result)
    assert "max_loss_increase of kind" in str(result.plan.explain(bound[0].group))
    with pytest.raises(InfeasibleBudgetError, match="max_loss_increase"):
        pruned(budget=Budget(params=0.5), steps=steps, safety=safety)
