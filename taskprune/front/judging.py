"""What a smaller model is worth to each task, by metrics or by its outputs; whether all hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward
from taskprune.calling.outputs import flatten_outputs, resolve_paths
from taskprune.calling.task import Task, check_validation, no_validation_batch
from taskprune.calling.tolerances import BrokenTolerance, broken_tolerances, check_watched
from taskprune.errors import InputError
from taskprune.front.steps import Step
from taskprune.importance.projections import output_tasks
from taskprune.report.making import costs_of_a_sample
from taskprune.report.record import StepLine
from taskprune.restore.modes import evaluating


class Agreement:
    r"""How much of an output stays as the original makes it.

    .. math:: 1 - \frac{\|s - t\|^2}{\|t - \bar t\|^2}

    of what the original makes, *t*, and the smaller model, *s*: 1 where all entries are the
    original's, 0 where its mean would do as well. Entries of the original that are not finite are
    left out.

    Args:
        path: The output.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.reset()

    def reset(self) -> None:
        """Forget all batches seen."""
        self._error, self._count, self._sum, self._squares = 0.0, 0, 0.0, 0.0

    def update(self, outputs: tuple[Any, Any], _batch: Any, /) -> None:
        """Take in the original's outputs and the smaller model's."""
        wanted, found = (_output(each, self.path) for each in outputs)
        finite = wanted.isfinite()
        wanted, found = wanted[finite], found[finite]
        self._error += float((found - wanted).square().sum())
        self._count += wanted.numel()
        self._sum += float(wanted.sum())
        self._squares += float(wanted.square().sum())

    def compute(self) -> float:
        """Return the share; NaN where the original's output never changes and the other does."""
        spread = self._squares - self._sum**2 / max(1, self._count)
        if self._error == 0:
            return 1.0
        return 1 - self._error / spread if spread > 0 else float("nan")


@dataclass(frozen=True, eq=False)
class Judge:
    """Measures models on validation data.

    Attributes:
        tasks: With a metric each, or none that is measured.
        held_out: The batches.
        forward: ``(model, batch) -> outputs`` as the metrics take them.
    """

    tasks: Mapping[str, Task]
    held_out: Iterable[Any]
    forward: Forward

    @classmethod
    def of_tasks(
        cls, tasks: Mapping[str, Task], validation: Iterable[Any], forward: Forward, otherwise: str
    ) -> Judge:
        """Make it, and check that there is something to measure.

        Raises:
            InputError: No task has a metric, which says `otherwise`; a tolerance has none, or there
                is no batch.
        """
        held_out = check_watched(tasks, validation)
        if all(task.metric is None for task in tasks.values()):
            raise InputError(otherwise)
        return cls(tasks, held_out, forward)

    @classmethod
    def of_outputs(cls, model: nn.Module, validation: Iterable[Any], forward: Forward) -> Judge:
        """Make one that compares every output with the original's, without labels.

        Raises:
            InputError: No output can be compared, or there is no batch.
        """
        held_out = check_validation(validation, "for each point")
        for first in held_out:
            with evaluating(model):
                found = output_tasks(model, first, forward=forward)
            own = {path: replace(task, metric=Agreement(path)) for path, task in found.items()}
            return cls(own, held_out, _Beside(model, forward))
        raise no_validation_batch()

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the metric of every task that has one."""
        if not self.tasks:
            return {}
        from taskprune.distillation import measure  # an extra

        return measure(model, self.tasks, self.held_out, forward=self.forward)


@dataclass(frozen=True, eq=False, slots=True)
class _Beside:
    """The forward of a smaller model with that of the original beside it."""

    original: nn.Module
    forward: Forward

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        with evaluating(self.original):
            return self.forward(self.original, batch), self.forward(model, batch)


def _output(outputs: Any, path: str) -> Tensor:
    flat = flatten_outputs(outputs)
    (name,) = resolve_paths({path: (path,)}, flat)[path]
    return flat[name].detach().to(torch.float64)


@dataclass
class Guard:
    """The metrics of all tasks before pruning and after each step, and whether all still hold."""

    judge: Judge
    before: Mapping[str, float] = field(default_factory=dict)
    lines: list[StepLine] = field(default_factory=list)
    broken: tuple[BrokenTolerance, ...] = ()

    def start(self, model: nn.Module) -> None:
        """Measure the original."""
        self.before = self.judge(model)

    def allows(self, step: Step) -> bool:
        """Measure what a step led to, and return whether every task holds."""
        costs = costs_of_a_sample(step.own, step.found.groups)
        now = {name: cost for name, (_, cost) in costs.items()}
        after = self.judge(step.model) if step.metrics is None else step.metrics
        self.broken = broken_tolerances(self.judge.tasks, self.before, after, step=step.number)
        self.lines.append(StepLine(step.number, now, after, undone=bool(self.broken)))
        return not self.broken

    @property
    def tolerances(self) -> dict[str, float]:
        """The tolerances of the tasks that are watched."""
        return {
            name: task.tolerance
            for name, task in self.judge.tasks.items()
            if name in self.before and task.tolerance is not None
        }
