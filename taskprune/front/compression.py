"""Iterative compression: prune a little, distil, measure, and go on while every task holds.

Only composes the front door. Every step is pruned towards the original's size and taught by the
original, never by the step before, so errors do not add up over teachers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import nn

from taskprune.calling.forward import Forwards, call_batch, one_forward
from taskprune.calling.task import Task, check_tasks
from taskprune.calling.tolerances import BrokenTolerance, broken_tolerances, check_watched
from taskprune.calling.wrappers import bare
from taskprune.distillation import DistillSettings, TapSelector
from taskprune.distillation.settings import checked_settings
from taskprune.errors import InfeasibleBudgetError
from taskprune.files.writing import make_folder
from taskprune.front.distilling import distill
from taskprune.front.job import Job
from taskprune.front.judging import Judge
from taskprune.front.prune_settings import PruneSettings
from taskprune.front.pruning import checked_safety
from taskprune.front.steps import Step, in_steps
from taskprune.importance import Importance
from taskprune.importance.criteria_by_name import DEFAULT_CRITERION
from taskprune.plan.plan import PruningPlan
from taskprune.rewrite.checkpoint import save_checkpoint
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety
from taskprune.terminal import plain_text, text_table


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

    def summary(self) -> dict[str, Any]:
        """Return everything but model and plan, for JSON."""
        return {
            "step": self.step,
            "params": self.params,
            "macs": self.macs,
            "metrics": dict(self.metrics),
            "broken": list(self.broken),
            "path": None if self.path is None else str(self.path),
        }


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """What :func:`compress` returns; prints as a table of all points.

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

    def to_json(self) -> str:
        """Return all points as indented JSON, with which of them are on the front and the best."""
        front = {point.step for point in self.front}
        points = [point.summary() | {"on_front": point.step in front} for point in self.points]
        found = {"best": self.best.step, "stopped": self.stopped, "points": points}
        return json.dumps(found, indent=2)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _table(self)
        if self.stopped is not None:
            yield f"Stopped. {self.stopped}"

    def __str__(self) -> str:
        return plain_text(self)


def compress(  # noqa: PLR0913 - like `prune`, by keyword
    model: nn.Module,
    tasks: Mapping[str, Task],
    ratio: float,
    *,
    data: Iterable[Any],
    steps: int = 4,
    validation: Iterable[Any] | None = None,
    settings: DistillSettings | None = None,
    taps: TapSelector | Sequence[TapSelector] | None = None,
    forward: Forwards | None = None,
    importance: str | Importance = DEFAULT_CRITERION,
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
        taps: The modules whose outputs are compared, as in :func:`taskprune.distill`.
        forward: ``(model, batch) -> outputs``, or several as in :func:`taskprune.prune`.
        importance: Criterion, as in :func:`taskprune.prune`.
        safety: Limits of all steps together, as in :func:`taskprune.prune`.
        n_batches: How many batches to score on. Default: all of them.

    Returns:
        All models seen. If a task lost more than its tolerance the last one says so, and ``best``
        is the one before.

    Raises:
        InputError: An argument does not fit.
        InfeasibleBudgetError: Not even the first step can be made.
    """
    named = check_tasks(tasks)
    job = Job(
        tasks=named,
        budget=Budget.from_ratio(ratio),
        data=data,
        forward=one_forward(forward),
        importance=importance,
        safety=checked_safety(safety),
        compensate=True,
        settings=PruneSettings(steps=steps, n_batches=n_batches),
    )
    model = bare(model)
    call = job.forward or call_batch
    held_out = check_watched(named, validation)
    settings = checked_settings(settings)
    if settings.directory is not None:  # said before the first step takes its time
        make_folder(Path(settings.directory), option="`DistillSettings.directory`")
    job.check(model)
    train = partial(
        distill,
        teacher=model,
        tasks=named,
        data=data,
        taps=taps,
        forward=call,
    )
    return _compressed(job, model, train, Judge(named, held_out, call), settings)


def _compressed(
    job: Job,
    model: nn.Module,
    train: Callable[..., nn.Module],
    measured: Judge,
    settings: DistillSettings,
) -> CompressionResult:
    """Prune and train in turn until a task loses too much or the target is reached."""
    points: list[CompressionPoint] = []
    try:
        for step in in_steps(job, model, looks_ahead=False, trains=True, verify=True):
            if not points:
                before = {name: cost for name, (cost, _) in step.own.costs.items()}
                found = measured(model)
                points.append(
                    CompressionPoint(0, before["params"], before["macs"], found, (), model, None)
                )
            folder = None
            if settings.directory is not None:
                folder = Path(settings.directory) / f"step_{step.number}"
            # In place.
            train(step.model, plan=step.plan, settings=replace(settings, directory=folder))
            found = measured(step.model)
            broken = broken_tolerances(job.tasks, points[0].metrics, found, step=step.number)
            points.append(_point(step, found, broken, folder))
            if broken:
                reason = "; ".join(str(each) for each in broken)
                return CompressionResult(tuple(points), f"Step {step.number}: {reason}.")
    except InfeasibleBudgetError as error:
        if not points:
            raise
        return CompressionResult(tuple(points), str(error))
    return CompressionResult(tuple(points), None)


def _point(
    step: Step,
    metrics: Mapping[str, float],
    broken: Sequence[BrokenTolerance],
    folder: Path | None,
) -> CompressionPoint:
    """Gather what a step led to, and save it if there is a folder."""
    path = None
    if folder is not None:
        path = folder / "model.safetensors"
        save_checkpoint(path, step.model, step.plan)
    costs = {name: after for name, (_, after) in step.own.costs.items()}
    return CompressionPoint(
        step.number,
        costs["params"],
        costs["macs"],
        metrics,
        tuple(each.task for each in broken),
        step.model,
        step.plan,
        path,
    )


def _table(result: CompressionResult) -> Table:
    """A row per point: how large it is, how well each task does, and what to know of it."""
    original = result.points[0]
    front = {point.step for point in result.front}
    rows = []
    for point in result.points:
        remarks = ["the original"] if point is original else []
        remarks += ["the best"] if point is result.best else []
        remarks += [f"{task} lost too much" for task in point.broken]
        row = [f"{point.step}{'*' if point.step in front else ' '}"]
        for before, now in ((original.params, point.params), (original.macs, point.macs)):
            row += [f"{now:,}", "" if now == before else f"{now / before - 1:+.1%}"]
        metrics = (f"{value:.4g}" for value in point.metrics.values())
        rows.append([*row, *metrics, ", ".join(remarks)])
    headings = ["step", "parameters", "", "multiply-adds", "", *original.metrics, "remarks"]
    title = "Compressed in steps, * on the Pareto front"
    return text_table(title, headings, rows, words=("remarks",))
