"""How small can it get: :func:`frontier` measures a whole curve of smaller models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from taskprune.calling.forward import Forwards, call_batch, one_forward
from taskprune.calling.task import Task, check_tasks
from taskprune.calling.wrappers import bare
from taskprune.cost import LatencyCost, count_macs, count_params
from taskprune.errors import InfeasibleBudgetError, InputError, short
from taskprune.files import make_folder, only_user_of
from taskprune.front.frontier_record import Frontier, FrontierPoint, Size
from taskprune.front.job import (
    Batches,
    Examined,
    Job,
    Say,
    at_work,
    choose,
    chosen_importance,
    examine,
    timed,
)
from taskprune.front.judging import Judge
from taskprune.front.point_folder import Measured, PointFolder
from taskprune.front.prune_settings import PruneSettings
from taskprune.front.pruning import checked_safety
from taskprune.front.steps import Cut
from taskprune.importance import Importance
from taskprune.plan.plan import PruningPlan
from taskprune.report.making import costs_of_a_sample, unowned_outputs
from taskprune.rewrite.checkpoint import load_checkpoint
from taskprune.rewrite.surgery import duplicate
from taskprune.solver.budget import Budget
from taskprune.solver.infeasible import unread
from taskprune.solver.safety import Safety
from taskprune.solver.step_context import ALONE

_log = logging.getLogger("taskprune")

SIZES: tuple[Size, ...] = ("macs", "params", "latency_ms")
"""What budgets may all bound; the first of them is what points are ordered by."""

NO_METRIC = (
    "A frontier shows what each size costs the tasks, but no task has a metric to measure it by. "
    "Pass Task(metric=...), or no tasks at all to compare outputs."
)

FRACTIONS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3, 0.2)
"""What the budgets leave where nobody says which they are."""


def frontier(  # noqa: PLR0913 - like `prune`, by keyword
    model: nn.Module,
    tasks: Mapping[str, Task] | None = None,
    data: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
    *,
    validation: Iterable[Any],
    budgets: Size | Sequence[Budget] = "macs",
    latency: bool = False,
    directory: str | Path | None = None,
    example_inputs: Any = None,
    forward: Forwards | None = None,
    importance: str | Importance | None = None,
    safety: Safety | None = None,
    settings: PruneSettings | None = None,
) -> Frontier:
    """Measure how small a model can get, and what each size costs every task.

    The model is traced and scored once. To every budget it is pruned anew from the original, in one
    step, what stays is compensated from one look at the calibration data, and each task's metric is
    measured; nothing is trained. ``print(frontier)`` shows the curve, ``frontier.pick`` returns the
    smallest model that holds. In several steps (``PruneSettings(steps="auto")`` of
    :func:`taskprune.prune`) a single budget may come out better.

    Ctrl-C ends the run with the points that are finished; ``Frontier.missing`` names the others.

    Args:
        model: The original; left as it was.
        tasks: With a ``metric`` for those to measure. ``None``: every output is a task, and its
            metric is the share of it that stays as the original makes it, 1 at best
            (:class:`~taskprune.front.judging.Agreement`); no labels are needed.
        data: Calibration batches, or a loader for each task; gone through once.
        validation: Batches to measure metrics on, not among `data`; gone through for each point.
        budgets: What to prune to: a list of ``Budget``, or ``"macs"``, ``"params"`` or
            ``"latency_ms"`` for a dozen of that, from 95 % to 20 % of the original.
        latency: Measure how long a forward takes on the example, each model in turn with the
            original. Budgets of latency do so in any case.
        directory: Keep every point there as it is finished, a checkpoint each. The same call goes
            on after a kill, and measures budgets that are new; a run with other settings or another
            model is refused. Data is not compared. Without it all models stay in memory.
        example_inputs: What to trace, time and verify on, as in :func:`taskprune.prune`.
        forward: As in :func:`taskprune.prune`.
        importance: As in :func:`taskprune.prune`.
        safety: Limits of every point.
        settings: As in :func:`taskprune.prune`, but for steps and what happens between them. Tasks
            count as they are weighed, whatever ``balance`` says.

    Raises:
        InputError: An argument does not fit, or another run uses the directory.
        CheckpointError: The directory holds another run, a file in it is damaged, or none can be
            written.
        InfeasibleBudgetError: None of the budgets can be met.
    """
    asked, size = _checked_budgets(budgets)
    model = bare(model)
    job = Job(
        tasks=check_tasks(tasks) if tasks is not None else {},
        budget=next((b for b in asked if b.latency_ms is not None), asked[0]),  # to check
        data=_checked_data(data),
        example_inputs=example_inputs,
        forward=one_forward(forward),
        importance=chosen_importance(importance, tasks),
        safety=checked_safety(safety),
        compensate=True,
        settings=_checked_settings(settings),
    )
    job.check(model)
    call = job.forward or call_batch
    judge = (
        Judge.of_tasks(job.tasks, validation, call, NO_METRIC)
        if job.tasks
        else Judge.of_outputs(model, validation, call)
    )
    curve = _Curve(job, model, judge, asked, size, latency or size == "latency_ms")
    if directory is None:
        return curve.measured(None)
    folder = Path(directory)
    make_folder(folder, option="`directory`")
    with only_user_of(folder, option="`directory`"):
        return curve.measured(PointFolder(folder, _identity(job, model, curve.times)))


@dataclass
class _Curve:
    """A frontier that is being measured."""

    job: Job
    model: nn.Module
    judge: Judge
    budgets: Sequence[Budget]
    size: Size
    times: bool
    points: list[FrontierPoint] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def measured(self, kept: PointFolder | None) -> Frontier:
        """Measure what is not there yet, and return all."""
        original = None if kept is None else kept.original()
        missing = [b for b in self.budgets if original is None or not self._is_known(b, kept)]
        if missing:
            with at_work("Frontier") as say:
                found = _examined(self.job, self.model, say)
                if original is None:
                    original = self._original(found, say)
                    if kept is not None:
                        kept.begin(original)
                self._go_through(missing, found, kept, say)
        assert original is not None
        whole = _as_point("the original", original, None, lambda: self.model, None)
        self.points.sort(key=lambda point: point.size(self.size), reverse=True)
        return Frontier(
            whole, tuple(self.points), self.size, _tolerances(self.job.tasks), self.missing
        )

    def _is_known(self, budget: Budget, kept: PointFolder | None) -> bool:
        """Take in the point of a budget, if it was measured before."""
        known = None if kept is None else kept.point(budget)
        if kept is None or known is None:
            return False
        path = kept.path_of(budget)
        self._add(budget, *known, path, partial(load_checkpoint, path, self.model))
        return True

    def _go_through(
        self, budgets: Sequence[Budget], found: Examined, kept: PointFolder | None, say: Say
    ) -> None:
        """Make the points one after the other.

        Raises:
            InfeasibleBudgetError: None can be made.
            KeyboardInterrupt: It came before the first was finished.
        """
        latency: LatencyCost | None = None
        refused: BaseException | None = None
        for number, budget in enumerate(budgets, start=1):
            if isinstance(refused, KeyboardInterrupt):
                self.missing[str(budget)] = "Interrupted."
                continue
            tell = partial(_tell, say, f"point {number} of {len(budgets)}, {budget}")
            try:
                if budget.latency_ms is not None:
                    latency = latency or timed(found, tell)
                self._make(budget, found, latency, kept, tell)
            except InfeasibleBudgetError as error:
                refused, self.missing[str(budget)] = error, str(error)
                _log.warning("No point of %s: %s", budget, error)
            except KeyboardInterrupt as error:
                refused, self.missing[str(budget)] = error, "Interrupted."
        if refused is not None and not self.points:
            raise refused
        if isinstance(refused, KeyboardInterrupt):
            _log.warning("Interrupted: %d points are finished.", len(self.points))

    def _make(
        self,
        budget: Budget,
        found: Examined,
        latency: LatencyCost | None,
        kept: PointFolder | None,
        say: Say,
    ) -> None:
        job = replace(self.job, budget=budget)
        plan = choose(job, found, ALONE, say, latency=latency)
        start = Cut(self.model, found.groups, plan)
        verify = job.settings.verify
        smaller, _, _ = start.carried_out(job, found, found, say, verify=verify)
        say("measuring every task")
        metrics = self.judge(smaller)
        costs = {name: now for name, (_, now) in costs_of_a_sample(plan, found.groups).items()}
        measured = Measured(
            costs["params"], costs["macs"], metrics, self._latency(smaller, found, say)
        )
        path = None if kept is None else kept.keep(budget, smaller, plan, measured)
        load = partial(load_checkpoint, path, self.model) if path else partial(duplicate, smaller)
        self._add(budget, measured, plan, path, load)

    def _add(
        self,
        budget: Budget,
        measured: Measured,
        plan: PruningPlan,
        path: Path | None,
        load: Callable[[], nn.Module],
    ) -> None:
        self.points.append(_as_point(str(budget), measured, plan, load, path))

    def _original(self, found: Examined, say: Say) -> Measured:
        say("measuring every task of the original")
        macs = count_macs(found.groups) // found.groups.batch_size
        return Measured(count_params(found.groups), macs, self.judge(self.model))

    def _latency(self, smaller: nn.Module, found: Examined, say: Say) -> tuple[float, float] | None:
        if not self.times:
            return None
        say("measuring the latency")
        times = found.timer({"before": self.model, "after": smaller})
        return times["before"], times["after"]


def _tell(say: Say, where: str, what: str) -> None:
    say(f"{where}: {what}")


def _examined(job: Job, model: nn.Module, say: Say) -> Examined:
    found = examine(job, model, say, surveys=True)
    if note := unread(found.groups, job.safety):
        _log.warning("%s", note)
    unowned_outputs(found.graph)
    return found


def _as_point(
    budget: str,
    measured: Measured,
    plan: PruningPlan | None,
    load: Callable[[], nn.Module],
    path: Path | None,
) -> FrontierPoint:
    return FrontierPoint(
        budget,
        measured.params,
        measured.macs,
        measured.metrics,
        measured.latency_ms,
        plan,
        load,
        path,
    )


def _tolerances(tasks: Mapping[str, Task]) -> dict[str, float]:
    return {n: float(t.tolerance) for n, t in tasks.items() if t.tolerance is not None}


def _identity(job: Job, model: nn.Module, times: bool) -> dict[str, Any]:
    """Return what must agree for a run to go on."""
    from taskprune.distillation.identity import checksum, described  # an extra, like measuring

    examples = [t for t in pytree.tree_leaves(job.example_inputs) if isinstance(t, Tensor)]
    return {
        "model": f"{type(model).__qualname__}, weights {checksum(model):08x}",
        "tasks": {
            name: [task.weight, described(task.loss), type(task.metric).__qualname__]
            for name, task in job.tasks.items()
        },
        "forward": described(job.forward),
        "importance": described(job.importance),
        "safety": described(job.safety),
        "settings": described(job.settings),
        "example_inputs": [list(tensor.shape) for tensor in examples],
        "latency": times,
    }


def _checked_budgets(budgets: Any) -> tuple[tuple[Budget, ...], Size]:
    """Return the budgets and what all of them bound.

    Raises:
        InputError: They are something else, none, or two of them the same.
    """
    for size in SIZES:
        if budgets == size:
            asked: list[dict[str, Any]] = [{size: part} for part in FRACTIONS]
            return tuple(Budget(**each) for each in asked), size
    is_list = isinstance(budgets, Iterable) and not isinstance(budgets, str | Iterator)
    found = tuple(budgets) if is_list else ()
    if not found or not all(isinstance(budget, Budget) for budget in found):
        raise InputError(
            "`budgets` must be 'macs', 'params', 'latency_ms', or a list such as "
            f"[Budget(macs=0.9), Budget(macs=0.8)]. Found {short(budgets)}."
        )
    words = [str(budget) for budget in found]
    if twice := [word for word in words if words.count(word) > 1]:
        raise InputError(f"Every budget makes a point of its own. Found {twice[0]} twice.")
    shared = [size for size in SIZES if all(getattr(each, size) is not None for each in found)]
    return found, shared[0] if shared else SIZES[0]


def _checked_data(data: Batches | None) -> Batches:
    if data is None:
        raise InputError(
            "What stays is re-weighted on calibration batches. Found none: pass `data=`."
        )
    return data


def _checked_settings(settings: PruneSettings | None) -> PruneSettings:
    settings = settings or PruneSettings()
    if settings.steps != 1 or settings.between_steps is not None:
        raise InputError(
            "All points of a frontier share one scoring: they are made in one step, and nothing is "
            f"trained. Found steps={settings.steps!r} and between_steps="
            f"{settings.between_steps!r}. Leave both out, and go on from a point with "
            "`taskprune.distill`."
        )
    return settings
