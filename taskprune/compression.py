"""Iterative compression: prune a little, distil, measure, and go on while every task holds.

Only composes the front door. Every step is pruned towards the original's size and taught by the
original, never by the step before, so errors do not add up over teachers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from taskprune.api import PruneResult, distill, prune
from taskprune.budget import Budget
from taskprune.checkpoint import save_checkpoint
from taskprune.distillation import DistillSettings, measure
from taskprune.errors import InfeasibleBudgetError, InputError
from taskprune.forward import Forward, call_batch
from taskprune.importance import Importance
from taskprune.plan import PruningPlan, compose
from taskprune.safety import Safety
from taskprune.tasks import Task, check_tasks


@dataclass(frozen=True, eq=False)
class CompressionPoint:
    """One model that was seen on the way.

    Attributes:
        step: 0 is the original.
        params: Parameters.
        macs: Multiply-adds of the batch that was traced.
        metrics: Per task with a metric, on the validation data, after distillation.
        broken: Tasks that lost more than their tolerance.
        model: The model itself; the original for step 0.
        plan: What leads from the original to it; ``None`` for step 0.
        path: Its checkpoint, if a directory was given.
    """

    step: int
    params: int
    macs: int
    metrics: Mapping[str, float]
    broken: tuple[str, ...]
    model: nn.Module
    plan: PruningPlan | None
    path: Path | None = None

    def is_dominated_by(self, other: CompressionPoint) -> bool:
        """Whether another is at most as large, nowhere worse, and better in something."""
        mine = (-self.params, -self.macs, *self.metrics.values())
        theirs = (-other.params, -other.macs, *(other.metrics[name] for name in self.metrics))
        return theirs != mine and all(t >= m for t, m in zip(theirs, mine, strict=True))


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """What :func:`compress` returns.

    Attributes:
        points: Everything seen, from the original on; the last may have broken a tolerance.
        stopped: Why the target was not reached; ``None`` if it was.
    """

    points: tuple[CompressionPoint, ...]
    stopped: str | None

    @property
    def best(self) -> CompressionPoint:
        """The smallest model in which every task kept to its tolerance."""
        return [point for point in self.points if not point.broken][-1]

    @property
    def model(self) -> nn.Module:
        """The model of :attr:`best`."""
        return self.best.model

    @property
    def front(self) -> tuple[CompressionPoint, ...]:
        """The points that no other dominates in size and all metrics, in the order seen."""
        return tuple(
            point
            for point in self.points
            if not any(point.is_dominated_by(other) for other in self.points)
        )


def compress(  # noqa: PLR0913 - like `prune`, by keyword
    model: nn.Module,
    tasks: Mapping[str, Task],
    ratio: float,
    *,
    data: Iterable[Any],
    steps: int = 4,
    validation: Iterable[Any] | None = None,
    settings: DistillSettings | None = None,
    forward: Forward | None = None,
    importance: str | Importance = "task_taylor",
    safety: Safety | None = None,
    n_batches: int | None = None,
) -> CompressionResult:
    r"""Alternate pruning and distillation until the target is reached or a task would suffer.

    After step :math:`i` of :math:`n`, :math:`(1 - ratio)^{i/n}` of the parameters remain: each step
    removes the same fraction of what is left. Scores are taken anew on the distilled model.

    With ``settings.directory``, each step keeps its own folder there with the training run and
    ``model.safetensors`` (see ``load_checkpoint``); the same call after a kill goes through the
    finished steps without training them again.

    Args:
        model: The original; left as it was, and the teacher of every step.
        tasks: Losses, and for those to watch a ``metric`` and a ``tolerance``.
        ratio: Fraction of the parameters to remove in all.
        data: Batches to score and to train on, gone through many times.
        steps: How many times to prune and distil.
        validation: Batches to measure metrics on; needed where a task has a metric.
        settings: Of the distillation in each step.
        forward: ``(model, batch) -> outputs``.
        importance: Criterion, as in :func:`taskprune.prune`.
        safety: Limits of each step, as in :func:`taskprune.prune`.
        n_batches: How many batches to score on. Default: all of them.

    Returns:
        All models seen. If a task lost more than its tolerance the last one says so, and ``best``
        is the one before.

    Raises:
        InputError: An argument does not fit.
        InfeasibleBudgetError: Not even the first step can be made.
    """
    named = check_tasks(tasks)
    whole = Budget.from_ratio(ratio)
    assert whole.params is not None
    held_out = _checked(named, steps, validation)
    settings = settings or DistillSettings()
    call = forward or call_batch

    points: list[CompressionPoint] = []
    current, plan = model, None
    for step in range(1, steps + 1):
        n_original = points[0].params if points else sum(p.numel() for p in model.parameters())
        target = max(2, int(n_original * whole.params ** (step / steps)))  # 1 would mean all
        try:
            result: PruneResult = prune(
                current,
                named,
                data=data,
                forward=forward,
                budget=Budget(params=target),
                importance=importance,
                safety=safety,
                n_batches=n_batches,
            )
        except InfeasibleBudgetError as error:
            if step == 1:
                raise
            return CompressionResult(tuple(points), f"Step {step}: {error}")
        if not points:
            before = {name: cost for name, (cost, _) in result.plan.costs.items()}
            metrics = measure(model, named, held_out, forward=call)
            points.append(
                CompressionPoint(0, before["params"], before["macs"], metrics, (), model, None)
            )
        plan = result.plan if plan is None else compose(plan, result.plan)
        folder = None
        if settings.directory is not None:
            folder = Path(settings.directory) / f"step_{step}"
        current = distill(
            result.model,
            teacher=model,
            tasks=named,
            data=data,
            plan=plan,
            forward=call,
            settings=replace(settings, directory=folder),
        )
        path = None
        if folder is not None:
            path = folder / "model.safetensors"
            save_checkpoint(path, current, plan)
        metrics = measure(current, named, held_out, forward=call)
        lost = _lost(named, points[0].metrics, metrics)
        costs = {name: after for name, (_, after) in result.plan.costs.items()}
        point = CompressionPoint(
            step, costs["params"], costs["macs"], metrics, lost, current, plan, path
        )
        points.append(point)
        if point.broken:
            return CompressionResult(tuple(points), _reason(point, points[0], named))
    return CompressionResult(tuple(points), None)


def _checked(
    tasks: Mapping[str, Task], steps: object, validation: Iterable[Any] | None
) -> Iterable[Any]:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"`steps` must be a whole number of at least 1. Found {steps!r}.")
    for name, task in tasks.items():
        if task.tolerance is not None and task.metric is None:
            raise InputError(
                f"Task `{name}` has a tolerance of {task.tolerance} but no `metric` that it could "
                "be measured in. Give it one, or leave the tolerance out."
            )
    if validation is None and any(task.metric is not None for task in tasks.values()):
        raise InputError(
            "Tasks have metrics, but there is no data to measure them on. Pass `validation=`, "
            "batches that are not trained on."
        )
    return () if validation is None else validation


def _lost(
    tasks: Mapping[str, Task], before: Mapping[str, float], after: Mapping[str, float]
) -> tuple[str, ...]:
    limits = {n: t.tolerance for n, t in tasks.items() if t.tolerance is not None}
    # Written so that a metric of NaN counts as broken.
    return tuple(n for n, limit in limits.items() if not before[n] - after[n] <= limit)


def _reason(point: CompressionPoint, original: CompressionPoint, tasks: Mapping[str, Task]) -> str:
    losses = "; ".join(
        f"`{name}` fell from {original.metrics[name]:.4g} to {point.metrics[name]:.4g} and may "
        f"lose {tasks[name].tolerance:.4g}"
        for name in point.broken
    )
    return f"Step {point.step}: {losses}."
