"""One job of pruning, and the two halves of a step of it.

:func:`examine` finds out what a model consists of and what its channels are worth, which holds for
any budget; :func:`choose` spends a budget on it. ``prune`` and ``compress`` are loops over both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, TypeAlias

import torch
from torch import nn

from taskprune.allocation.finding_free import free_among
from taskprune.allocation.free_channels import FreeChannels, only_free
from taskprune.allocation.input_rows import InputRows
from taskprune.calling.forward import Forward, OnEach
from taskprune.calling.inputs import ModelInputs, Remembered, model_inputs, task_batches
from taskprune.calling.outputs import matching_paths, resolve_paths
from taskprune.calling.task import Task
from taskprune.compensation import Survey
from taskprune.compensation.survey import BATCHES_KEPT, dims_read
from taskprune.cost import LatencyCost
from taskprune.coupling import couple, labelled
from taskprune.coupling.groups import CouplingGroups
from taskprune.deployment.latency import ModelTimer, device_of, landed, measured_cost
from taskprune.deployment.runtimes import checked_runtime
from taskprune.errors import InputError
from taskprune.front.prune_settings import PruneSettings
from taskprune.graph import ModelGraph, trace
from taskprune.importance import ChannelScores, Importance, score
from taskprune.importance.criteria_by_name import DEFAULT_CRITERION, checked_criterion
from taskprune.importance.owners import LOOK_AHEAD, find_owners
from taskprune.importance.scoring import check_values
from taskprune.plan.plan import PruningPlan
from taskprune.restore.process import preserved_rng
from taskprune.rewrite.surgery import skeleton
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety
from taskprune.solver.step_context import StepContext
from taskprune.terminal.console import stages

Batches: TypeAlias = Iterable[Any] | Mapping[str, Iterable[Any]]
"""Batches, or a loader for each task by its name."""

Say: TypeAlias = Callable[[str], None]
"""Announces the next stage to whoever looks."""


def chosen_importance(
    importance: str | Importance | None, tasks: Mapping[str, Task] | None
) -> str | Importance:
    """Return the criterion that was asked for, or the default with tasks or without."""
    return importance or ("output_change" if tasks is None else DEFAULT_CRITERION)


@dataclass(frozen=True, eq=False)
class Job:
    """What is asked for; the same in every step.

    Attributes:
        tasks: The tasks by name; none where every output is to be one.
        budget: What may remain at the end.
        only_free: Take what costs nothing, and leave the rest, whatever the budget says.
        data: Calibration batches, or a loader for each task; gone through once in every step.
        example_inputs: What to trace, time and verify on; ``None`` for the first batch.
        forward: ``(model, batch) -> outputs``; ``None`` for the convention.
        importance: The criterion or its name.
        safety: Limits of all steps together.
        compensate: Whether what stays is re-weighted to say what goes said, where there is data.
        settings: How to go about it.
    """

    tasks: Mapping[str, Task]
    budget: Budget
    data: Batches | None
    example_inputs: Any = None
    forward: Forward | None = None
    importance: str | Importance = DEFAULT_CRITERION
    safety: Safety = field(default_factory=Safety)
    compensate: bool = False
    only_free: bool = False
    settings: PruneSettings = field(default_factory=PruneSettings)

    @property
    def compensates(self) -> bool:
        """Whether there is what it takes to compensate."""
        return self.compensate and self.data is not None

    def check(self, model: nn.Module) -> None:
        """Check all that needs no run of the model, before minutes of work.

        Raises:
            InputError: Something does not fit the model, or the model cannot be pruned.
        """
        if not any(True for _ in model.parameters()):
            raise InputError(
                f"Expected a model with parameters to remove. {type(model).__name__} has none."
            )
        check_values(model, checked_criterion(self.importance))
        if self.only_free and (not self.compensates or self.settings.steps != 1):
            raise InputError(
                "budget='free' takes what the calibration data shows to say nothing, in one step, "
                "and lets the rest say it: pass `data=`, and leave `compensate` and `steps` as "
                f"they are. Found compensate={self.compensate}, steps={self.settings.steps!r} and "
                f"{'no data' if self.data is None else 'data'}."
            )
        if self.budget.latency_ms is not None:
            checked_runtime(self.settings.runtime, device_of(model, self.example_inputs))
        skeleton(model)  # a copy is needed later on; this one holds no weights


@dataclass(frozen=True, eq=False)
class Examined:
    """What a model consists of, and what each of its channels is worth.

    Attributes:
        model: The model; it is as it was.
        inputs: What it ran on.
        graph: Its traced passes.
        groups: Which channels live or die together.
        scores: What they are worth to each task.
        survey: What the forwards and backwards showed of its readers, to compensate with; ``None``
            where nobody asked.
        free: Channels that cost nothing, found on the way; their scores are the lowest.
        timer: Times models on the example as the job says.
    """

    model: nn.Module
    inputs: ModelInputs
    graph: ModelGraph
    groups: CouplingGroups
    scores: ChannelScores
    survey: Survey | None
    timer: ModelTimer
    free: FreeChannels = field(default_factory=FreeChannels)

    def reweighted(self, weights: Mapping[str, float]) -> Examined:
        """Return the same with the scores that tasks of other weights would have led to."""
        assert self.scores.reweighted is not None
        return replace(self, scores=self.free.first(self.scores.reweighted(weights)))


@contextmanager
def at_work(title: str) -> Iterator[Say]:
    """Show what is going on; the random generators are given back.

    Tensors made in a surrounding inference mode could neither be scored nor trained on.
    """
    with preserved_rng(), stages(title) as say, torch.inference_mode(False):
        yield say


def examine(job: Job, model: nn.Module, say: Say, *, surveys: bool = False) -> Examined:
    """Trace a model, find its groups and score them.

    Args:
        job: What is asked for.
        model: The original, or what earlier steps have left of it; left as it is.
        say: Announces stages.
        surveys: Look on while it is scored, for whoever compensates.
    """
    settings = job.settings
    inputs = model_inputs(
        job.data, job.example_inputs, job.tasks, forward=job.forward, n_batches=settings.n_batches
    )
    say("tracing the model")
    tasks, owners, inputs = find_owners(model, job.tasks, inputs, n_batches=settings.n_batches)
    graph, inputs = _traced(job, model, owners, inputs)
    say("finding which channels belong together")
    groups = couple(graph, protect=settings.protect, strict=settings.strict)
    if settings.modalities is not None or job.budget.modalities:
        groups = labelled(groups, None if settings.modalities == "inputs" else settings.modalities)
    say("scoring every channel")
    read = InputRows()
    survey = _survey(tasks, inputs, groups, read) if surveys else None
    batches = _remembered(inputs, settings.n_batches) if surveys else inputs.batches
    scores = score(
        model,
        groups,
        tasks,
        batches,
        importance=job.importance,
        forward=inputs.forward,
        n_batches=settings.n_batches,
        calibrate=settings.calibrate,
        progress=lambda done: say(f"scoring every channel, {inputs.count(done)}"),
        watch=survey,
    )
    if survey is not None and not survey.batches:
        say("looking at what channels say")  # which this criterion did not have to
        survey.look(model, _kept(batches), replacements=groups.replacements)
    free = FreeChannels() if survey is None else free_among(model, groups, survey, read)
    timer = ModelTimer(inputs.example, inputs.on_example, settings.runtime)
    return Examined(model, inputs, graph, groups, free.first(scores), survey, timer, free)


def timed(found: Examined, say: Say) -> LatencyCost:
    """Measure what a budget of latency needs of an examined model, whatever its bound."""
    return measured_cost(found.model, found.groups, found.timer, progress=say)


def choose(
    job: Job,
    found: Examined,
    context: StepContext,
    say: Say,
    *,
    latency: LatencyCost | None = None,
) -> PruningPlan:
    """Choose which channels of an examined model go in one step.

    Args:
        job: What is asked for.
        found: The model at hand.
        context: Which step it is, and what those before have done.
        say: Announces stages.
        latency: From :func:`timed`, where it is at hand and the budget bounds the latency.

    Raises:
        InfeasibleBudgetError: The budget cannot be met; says what can.
    """
    budget = job.budget
    if job.only_free:
        budget = only_free(found.groups, found.scores, job.safety)

    def solved(cost: LatencyCost | None = None) -> PruningPlan:
        say("choosing channels")
        return solve(
            found.groups,
            found.scores,
            budget,
            safety=job.safety,
            costs=None if cost is None else {"latency_ns": cost},
            context=context,
        )

    if budget.latency_ms is None:
        return solved()
    cost = latency or timed(found, say)
    return landed(cost, found.model, found.timer, solved, say)


def _survey(
    tasks: Mapping[str, Task], inputs: ModelInputs, groups: CouplingGroups, read: InputRows
) -> Survey:
    n_loaders = len(inputs.batches) if isinstance(inputs.batches, Mapping) else 1
    most = BATCHES_KEPT * n_loaders
    return Survey(
        dims_read(groups), tasks, forward=inputs.forward, most_batches=most, on_read=read.take
    )


def _remembered(
    inputs: ModelInputs, n_batches: int | None
) -> Remembered | Mapping[str, Remembered] | None:
    most = min(n_batches or BATCHES_KEPT, BATCHES_KEPT)
    if isinstance(inputs.batches, Mapping):
        return {task: Remembered(own, most) for task, own in inputs.batches.items()}
    return None if inputs.batches is None else Remembered(inputs.batches, most)


def _kept(batches: Any) -> list[Any]:
    """Return the first batches that :func:`_remembered` made to be kept."""
    if isinstance(batches, Mapping):
        return list(task_batches({task: own.kept() for task, own in batches.items()}))
    return [] if batches is None else batches.kept()


def _traced(
    job: Job, model: nn.Module, owners: Mapping[str, tuple[str, ...]], inputs: ModelInputs
) -> tuple[ModelGraph, ModelInputs]:
    """Return the graph, and the inputs with no batch lost and the example that it is of.

    Where batches are of one task each, the first does not lead to all outputs: then those that
    lead to further ones are traced along with it.
    """

    def of(examples: Sequence[Any]) -> tuple[ModelGraph, ModelInputs]:
        own = inputs
        if len(examples) > 1:
            together = OnEach(inputs.forward)
            own = replace(inputs, example=tuple(examples), on_example=together)
        return trace(model, own.example, forward=own.on_example, modes="all"), own

    def returned(graph: ModelGraph) -> set[str]:
        return {output.path for output in graph.outputs}

    def is_complete(graph: ModelGraph) -> bool:
        wanted = (path for paths in owners.values() for path in paths)
        return all(matching_paths(path, returned(graph)) for path in wanted)

    chosen = [inputs.example]
    graph, found = of(chosen)
    if not is_complete(graph) and inputs.batches is not None and job.example_inputs is None:
        if inputs.task_examples:
            seen = list(inputs.task_examples.values())
        else:
            assert not isinstance(inputs.batches, Mapping)
            batches = iter(inputs.batches)
            seen = list(islice(batches, min(job.settings.n_batches or LOOK_AHEAD, LOOK_AHEAD)))
            inputs = replace(inputs, batches=chain(seen, batches))
        for batch in seen[1:]:
            wider, its = of([*chosen, batch])
            if returned(wider) > returned(graph):
                chosen.append(batch)
                graph, found = wider, its
            if is_complete(graph):
                break
        found = replace(found, batches=inputs.batches)
    return replace(graph, tasks=resolve_paths(owners, (o.path for o in graph.outputs))), found
