"""Whether every task still does what its user asks of it, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from taskprune.calling.forward import Forward
from taskprune.calling.task import Task
from taskprune.calling.tolerances import BrokenTolerance, broken_tolerances, check_watched
from taskprune.errors import InputError
from taskprune.front.steps import Step
from taskprune.report.making import costs_of_a_sample
from taskprune.report.record import StepLine


@dataclass
class Guard:
    """The metrics of all tasks before pruning and after each step, and whether all still hold."""

    tasks: Mapping[str, Task]
    held_out: Iterable[Any]
    forward: Forward
    before: Mapping[str, float] = field(default_factory=dict)
    lines: list[StepLine] = field(default_factory=list)
    broken: tuple[BrokenTolerance, ...] = ()

    @classmethod
    def over(
        cls, tasks: Mapping[str, Task], validation: Iterable[Any] | None, forward: Forward
    ) -> Guard:
        """Make it, without any tasks to watch where there is no validation data.

        Raises:
            InputError: There is data and no metric, or what a tolerance needs is missing.
        """
        # Not by its truth: loaders of streams have no length, and so no truth value.
        if validation is None:
            return cls({}, (), forward)
        held_out = check_watched(tasks, validation)
        if all(task.metric is None for task in tasks.values()):
            raise InputError(
                "There is `validation` data, but no task has a metric to measure on it. Pass "
                "Task(metric=..., tolerance=...)."
            )
        return cls(tasks, held_out, forward)

    def start(self, model: nn.Module) -> None:
        """Measure the original."""
        self.before = self._measured(model)

    def allows(self, step: Step) -> bool:
        """Measure what a step led to, and return whether every task holds."""
        after = self._measured(step.model)
        self.broken = broken_tolerances(self.tasks, self.before, after, step=step.number)
        costs = costs_of_a_sample(step.own, step.found.groups)
        now = {name: cost for name, (_, cost) in costs.items()}
        self.lines.append(StepLine(step.number, now, after, undone=bool(self.broken)))
        return not self.broken

    @property
    def tolerances(self) -> dict[str, float]:
        """The tolerances of the tasks that are watched."""
        return {
            name: task.tolerance
            for name, task in self.tasks.items()
            if name in self.before and task.tolerance is not None
        }

    def _measured(self, model: nn.Module) -> Mapping[str, float]:
        if not self.tasks:
            return {}
        from taskprune.distillation import measure

        return measure(model, self.tasks, self.held_out, forward=self.forward)
