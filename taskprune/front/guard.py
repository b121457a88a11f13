"""Whether every task still does what its user asks of it, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from taskprune.calling.tolerances import BrokenTolerance, broken_tolerances
from taskprune.front.judging import Judge
from taskprune.front.steps import Step
from taskprune.report.making import costs_of_a_sample
from taskprune.report.record import StepLine


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
        after = self.judge(step.model)
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
