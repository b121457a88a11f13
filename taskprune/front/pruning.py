"""The front door: :func:`prune` makes a model smaller, in one step or many.

It only composes public functions; everything it does can be done stage by stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from taskprune.calling.forward import Forwards, call_batch, one_forward
from taskprune.calling.meta import without_values
from taskprune.calling.task import Task, check_tasks
from taskprune.calling.tolerances import unwatched
from taskprune.calling.wrappers import unwrap
from taskprune.deployment.latency import compare_latency
from taskprune.errors import InputError, short
from taskprune.front.balancing import Balance
from taskprune.front.job import Job, at_work, chosen_importance
from taskprune.front.judging import Guard, Judge
from taskprune.front.prune_settings import PruneSettings
from taskprune.front.result import PruneResult
from taskprune.front.steps import Cut, Step, in_steps
from taskprune.importance import Importance
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.report.cost_free import FreeReport
from taskprune.report.making import make_report, unowned_outputs, unreadable_files
from taskprune.report.record import CompensationReport
from taskprune.restore.modes import modes_given_back
from taskprune.rewrite import VerificationReport
from taskprune.solver.budget import Budget
from taskprune.solver.infeasible import unread
from taskprune.solver.safety import Safety

TRAINED = (
    "Trained between steps: each step was verified against the model it started from, not the "
    "result against the original, whose weights it no longer shares."
)


NO_METRIC = (
    "There is `validation` data, but no task has a metric to measure on it. Pass "
    "Task(metric=..., tolerance=...)."
)

NOT_FREE = "what is not free"
"""What a report calls the budget that takes only what costs nothing."""


def prune(  # noqa: PLR0913 - the front door: what is asked for, by keyword; how is in `settings`
    model: nn.Module,
    tasks: Mapping[str, Task] | None = None,
    ratio: float | None = None,
    *,
    data: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
    validation: Iterable[Any] | None = None,
    example_inputs: Any = None,
    forward: Forwards | None = None,
    budget: Budget | Literal["free"] | None = None,
    importance: str | Importance | None = None,
    safety: Safety | None = None,
    compensate: bool = True,
    settings: PruneSettings | None = None,
) -> PruneResult:
    """Make a model smaller without any of its tasks paying for it.

    Traces the model, finds which channels live or die together, scores them for every task,
    chooses which go, and rewrites a copy with smaller tensors. The rewritten model is compared
    with the original whose removed channels are zeroed before it is handed out.

    Args:
        model: Any module; it is left exactly as it was and can serve as the teacher. One inside
            ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel`` is taken out, and
            comes back bare: wrap the result again. On the meta device it is planned for with
            ``importance="random"`` or any criterion that looks at no weights.
        tasks: The model's tasks by name. ``None``: every output of the model is a task, and what
            channels are worth is how much the outputs change without them; `data` then needs no
            labels.
        ratio: Fraction of the parameters to remove. Never less goes, and more by at most 0.5 %, or
            by a part of one channel where the model has none so small. Give this or `budget`.
        data: Calibration batches, for example a ``DataLoader``; gone through once. A few hundred
            samples suffice. Tasks whose labels come from different data: a loader for each,
            ``{task: loader}``.
        validation: Batches to measure metrics on: where every task has one, none is to pay for
            another (``PruneSettings.balance``), and a step by which one loses more than its
            ``tolerance`` is undone. The report says so; without this data, that none was watched.
        example_inputs: A tensor, a tuple of arguments or a dict of keywords; in place of `data`
            with a criterion that needs none. Beside `data`: what the model will run on once it is
            deployed. Scores are then taken on the data; shapes, costs, latency and verification on
            the example.
        forward: ``(model, batch) -> outputs``, where the batch is not ``(inputs, targets)``, a
            tensor or a dict of keyword arguments. The example reaches the model the same way.
            Several, in a list or a dict by name, are one whose outputs are a list or dict of
            theirs. What no call runs is reported; what it could read stays (``Safety.unused``).
        budget: What the smaller model may cost: parameters, multiply-adds, latency, memory of
            activations. Latency is predicted from operators timed on the model's device with the
            example; what was timed once is read from disk (``$TASKPRUNE_CACHE``). ``"free"``: only
            channels that are dead, constant or linear in others go. With any budget they go first.
        importance: Name of a criterion, or any callable that scores channels. Default:
            ``"task_change"``, without tasks ``"output_change"``.
        safety: Limits that hold whatever the scores say. Default: ``Safety()``.
        compensate: Re-weight what stays so that it says what the removed channels said: least
            squares on the calibration batches, without training (:mod:`taskprune.compensation`).
            Without `data` there is nothing to do it with.
        settings: How to go about it: steps, what happens between them, protected modules,
            calibration, verification. Default: ``PruneSettings()``.

    Raises:
        InputError: An argument does not fit, a loader is empty, a task's outputs do not exist.
        TraceError: The model rejects the inputs.
        LossError: A task's loss is not a finite scalar attached to the model.
        UnsupportedOperatorError: An operator has no channel rule and ``settings.strict`` is set.
        InfeasibleBudgetError: The budget cannot be met; says what can.
        VerificationError: The rewritten model differs. Please report it; nothing was changed.
    """
    model, notes = unwrap(model)
    job = Job(
        tasks=check_tasks(tasks) if tasks is not None else {},
        budget=checked_budget(ratio, budget),
        only_free=budget == "free",
        data=data,
        example_inputs=example_inputs,
        forward=one_forward(forward),
        importance=chosen_importance(importance, tasks),
        safety=checked_safety(safety),
        compensate=compensate,
        settings=_checked_settings(settings),
    )
    return _pruned(job, model, validation, notes)


def _pruned(
    job: Job, model: nn.Module, validation: Iterable[Any] | None, notes: tuple[str, ...]
) -> PruneResult:
    """Make one step after the other while every task holds."""
    settings = job.settings
    call = job.forward or call_batch
    # Not by its truth: loaders of streams have no length, and so no truth value.
    judge = (
        Judge({}, (), call)
        if validation is None
        else Judge.of_tasks(job.tasks, validation, call, NO_METRIC)
    )
    guard = Guard(judge)
    if settings.steps != 1 or settings.between_steps is not None or validation is not None:
        _check_passes(job.data)
    job.check(model)
    if validation is None:
        notes += unwatched(job.tasks)
    guard.start(model)
    trains = settings.between_steps is not None
    at_once = settings.verify and (trains or job.compensates or settings.steps == 1)
    first, last = None, None
    # What training does to a task after a step is not known before.
    balance = Balance(judge, guard.before, 0 if trains or job.only_free else settings.balance)
    steps = in_steps(job, model, looks_ahead=True, trains=trains, verify=at_once, chosen=balance)
    for step in steps:
        first = first or step
        if settings.between_steps is not None:
            with modes_given_back(step.model):
                settings.between_steps(step.number, step.model, step.plan)
        if not guard.allows(step):
            break
        last = step
    assert first is not None  # there is at least one step
    done = _Done(job, model, first, last, notes + ((TRAINED,) if last and trains else ()))
    return done.result(guard, balance)


@dataclass(frozen=True, eq=False)
class _Done:
    """All steps that were made; ``last`` is ``None`` where the first was undone."""

    job: Job
    model: nn.Module
    first: Step
    last: Step | None
    notes: tuple[str, ...]

    def result(self, guard: Guard, balance: Balance) -> PruneResult:
        """Gather what came out."""
        job, found = self.job, self.first.found
        plan = self.last.plan if self.last else self._nothing()
        with at_work("Pruning") as say:
            smaller, verification = self._smaller(plan)
            latency = None
            if "latency_ns" in plan.costs:
                say("measuring the latency")
                latency = compare_latency(self.model, smaller, plan, found.timer)
        notes = (*self.notes, *found.graph.notes, *unowned_outputs(found.graph))
        notes += unreadable_files(smaller, plan)
        if note := unread(found.groups, job.safety):
            notes += (note,)
        if job.settings.verify and (name := without_values(self.model)):
            notes += (
                f"Not verified: `{name}` is on the meta device and has no values to compare.",
            )
        if verification is not None and verification.is_vacuous:
            notes += (f"{str(verification).capitalize()}.",)
        report = make_report(
            found.groups,
            found.scores,
            plan,
            job.budget,
            verification,
            notes=notes,
            latency=latency,
            round_to=job.safety.multiple,
        )
        watched = job.settings.steps != 1 or job.settings.between_steps is not None
        watched = watched or bool(guard.judge.tasks)
        report = replace(
            report,
            metrics=guard.before,
            tolerances=guard.tolerances,
            steps=tuple(guard.lines) if watched else (),
            broken=guard.broken,
            compensation=self._compensation(),
            free=self._free(plan),
            balance=tuple(balance.tried),
            budget=NOT_FREE if job.only_free else report.budget,
        )
        scores = replace(found.scores, reweighted=None)  # which holds all that was added up
        return PruneResult(smaller, plan, report, found.groups, scores)

    def _compensation(self) -> CompensationReport | None:
        if self.last is None or self.last.compensation is None:
            return None
        done = self.last.compensation
        return CompensationReport(done.losses, done.readers)

    def _free(self, plan: PruningPlan) -> FreeReport | None:
        found = self.first.found
        if found.survey is None:
            return None
        counts = {name: len(channels) for name, channels in found.free.channels.items()}
        return FreeReport.of_counts(found.groups, counts, sum(found.free.among(plan).values()))

    def _nothing(self) -> PruningPlan:
        """Return the plan that removes nothing."""
        costs = {name: (before, before) for name, (before, _) in self.first.own.costs.items()}
        return build_plan(self.first.found.groups, {}, costs)

    def _smaller(self, plan: PruningPlan) -> tuple[nn.Module, VerificationReport | None]:
        """Return the result, made from the original unless its weights are no longer those."""
        settings = self.job.settings
        changed = settings.between_steps is not None or self.job.compensates
        if self.last and (changed or self.last is self.first):
            return self.last.model, self.last.verification
        cut = Cut(self.model, self.first.found.groups, plan)
        return cut.rewritten(self.job, self.first.found, verify=settings.verify)


def checked_budget(ratio: float | None, budget: Budget | Literal["free"] | None) -> Budget:
    """Return what may remain; all of it where what is free is yet to be found.

    Raises:
        InputError: Both or neither are given, or something else than they are.
    """
    if (ratio is None) == (budget is None):
        raise InputError(
            "Say how much to remove: either `ratio=0.3` (fraction of the parameters removed) or "
            f"`budget=Budget(...)`. Found {'neither' if ratio is None else 'both'}."
        )
    if ratio is not None:
        return Budget.from_ratio(ratio)
    if budget == "free":
        return Budget(params=1.0)
    if not isinstance(budget, Budget):
        raise InputError(
            "`budget` must be a `Budget(params=..., macs=...)`, or 'free' for what costs nothing. "
            f"Found {short(budget)}."
        )
    return budget


def checked_safety(safety: Safety | None) -> Safety:
    """Return the limits, the default ones for ``None``.

    Raises:
        InputError: It is something else.
    """
    if safety is not None and not isinstance(safety, Safety):
        raise InputError(f"`safety` must be a `Safety(...)`. Found {short(safety)}.")
    return safety or Safety()


def _checked_settings(settings: PruneSettings | None) -> PruneSettings:
    if settings is not None and not isinstance(settings, PruneSettings):
        raise InputError(f"`settings` must be a `PruneSettings(...)`. Found {short(settings)}.")
    return settings or PruneSettings()


def _check_passes(data: Iterable[Any] | Mapping[str, Iterable[Any]] | None) -> None:
    loaders = data.values() if isinstance(data, Mapping) else (data,)
    if any(isinstance(loader, Iterator) for loader in loaders):
        raise InputError(
            "Pruning in steps, or with `validation=`, goes through `data` more than once. Found an "
            "iterator, which has one pass only: pass a list of batches or a `DataLoader`."
        )
