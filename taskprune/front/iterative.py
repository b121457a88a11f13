"""Iterative pruning from the front door: the loop, what is measured on the way, the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

from torch import nn

from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.inputs import model_inputs
from taskprune.calling.task import Task
from taskprune.calling.tolerances import BrokenTolerance, broken_tolerances, check_watched
from taskprune.deployment.latency import compare_latency
from taskprune.distillation import measure
from taskprune.errors import InputError
from taskprune.front.result import PruneResult
from taskprune.front.schedule import PruneTo, Step, pruned_in_steps
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.report.making import make_report
from taskprune.report.record import StepLine
from taskprune.restore.rng import preserved_rng
from taskprune.rewrite import apply_and_verify
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety

BetweenSteps: TypeAlias = Callable[[int, nn.Module, PruningPlan], Any]
"""``(step, model, plan)``: may train the model in place; what it returns is ignored."""

TRAINED = (
    "Trained between steps: each step was verified against the model it started from, not the "
    "result against the original, whose weights it no longer shares."
)


def prune_in_steps(  # noqa: PLR0913 - the arguments of `prune`
    model: nn.Module,
    prune_to: PruneTo,
    tasks: Mapping[str, Task],
    budget: Budget,
    safety: Safety,
    *,
    steps: int,
    data: Iterable[Any] | Mapping[str, Iterable[Any]] | None,
    example_inputs: Any,
    forward: Forward | None,
    between_steps: BetweenSteps | None,
    validation: Iterable[Any] | None,
    verify: bool,
    notes: tuple[str, ...] = (),
) -> PruneResult:
    """Prune step by step while every task holds; the arguments are those of `taskprune.prune`.

    Args:
        model: The original, bare; left as it was.
        prune_to: Makes one step.
        tasks: Metrics and tolerances by task.
        budget: What may remain at the end.
        safety: Limits of all steps together.
        steps: How many there are.
        data: Calibration batches, gone through in every step.
        example_inputs: In place of `data`.
        forward: ``(model, batch) -> outputs``.
        between_steps: Called after every step.
        validation: What metrics are measured on.
        verify: Compare the result with the masked original.
        notes: What the report says beside what the steps say.

    Raises:
        InputError: The data has one pass only, the callback is none, or what a tolerance needs is
            missing.
        InfeasibleBudgetError: The budget is out of reach, said in the first step, or a later step
            cannot be made.
        VerificationError: The result differs from the masked original.
    """
    if between_steps is not None and not callable(between_steps):
        raise InputError(
            "`between_steps` must be a function (step, model, plan) that may train the model in "
            f"place. Found {type(between_steps).__name__}."
        )
    # Not by its truth: loaders of streams have no length, and so no truth value.
    watching = validation is not None
    held_out = check_watched(tasks, validation) if watching else ()
    if watching and all(task.metric is None for task in tasks.values()):
        raise InputError(
            "There is `validation` data, but no task has a metric to measure on it. Pass "
            "Task(metric=..., tolerance=...)."
        )
    _check_passes(data)
    with preserved_rng():
        source = model_inputs(data, example_inputs, tasks, forward=forward)
    call = forward or call_batch
    before = measure(model, tasks, held_out, forward=call) if watching else {}
    lines: list[StepLine] = []
    broken: tuple[BrokenTolerance, ...] = ()
    first: PruneResult | None = None
    last: Step | None = None
    on_the_way = pruned_in_steps(model, prune_to, budget, safety, steps=steps, looks_ahead=True)
    for step in on_the_way:
        first = first or step.result
        trained = step.result.model
        if between_steps is not None:
            with _flags_given_back(trained):
                between_steps(step.number, trained, step.plan)
        after = measure(trained, tasks, held_out, forward=call) if watching else {}
        broken = broken_tolerances(tasks, before, after, step=step.number) if watching else ()
        costs = {name: cost for name, (_, cost) in step.result.report.costs.items()}
        lines.append(StepLine(step.number, costs, after, undone=bool(broken)))
        if broken:
            break
        last = step
    assert first is not None  # there is at least one step
    plan = last.plan if last else _nothing(first)
    if last and between_steps is not None:
        smaller, verification = last.result.model, last.result.report.verification
        notes += (TRAINED,)
    else:
        smaller, verification = apply_and_verify(
            model,
            plan,
            example_inputs=source.example,
            forward=source.forward,
            groups=first.groups,
            verify=verify,
        )
    timed = "latency_ns" in plan.costs
    report = make_report(
        first.groups,
        first.scores,
        plan,
        budget,
        verification,
        notes=tuple(dict.fromkeys((*notes, *first.report.notes))),
        latency=compare_latency(model, smaller, plan, source.example, forward=source.forward)
        if timed
        else None,
        round_to=safety.multiple,
    )
    tolerances = {
        name: task.tolerance
        for name, task in tasks.items()
        if name in before and task.tolerance is not None
    }
    report = replace(
        report, metrics=before, tolerances=tolerances, steps=tuple(lines), broken=broken
    )
    return PruneResult(smaller, plan, report, first.groups, first.scores)


def _nothing(first: PruneResult) -> PruningPlan:
    """Return the plan that removes nothing."""
    costs = {name: (before, before) for name, (before, _) in first.plan.costs.items()}
    return build_plan(first.groups, {}, costs)


def _check_passes(data: Iterable[Any] | Mapping[str, Iterable[Any]] | None) -> None:
    loaders = data.values() if isinstance(data, Mapping) else (data,)
    if any(isinstance(loader, Iterator) for loader in loaders):
        raise InputError(
            "Pruning in steps, or with `validation=`, goes through `data` more than once. Found an "
            "iterator, which has one pass only: pass a list of batches or a `DataLoader`."
        )


@contextmanager
def _flags_given_back(model: nn.Module) -> Iterator[None]:
    """Restore each module's ``training`` flag on exit; what has been trained stays trained."""
    flags = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
