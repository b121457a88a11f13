r"""Which weights of the tasks let none pay for another, found by measuring. Ours.

Scores say what a task's loss or its outputs change by, to first order and each as a share of all
that task has; in points of a metric one task may pay ten times what another does. So the step is
made, every task's metric is measured, and the task that lost most counts twice as much in the next
try; the scores themselves are not taken again. It goes on from the best try, by the root of the
factor once one was too much.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from taskprune.calling.tolerances import changes, worst_change
from taskprune.errors import InfeasibleBudgetError
from taskprune.front.job import Examined, Say
from taskprune.front.judging import Judge
from taskprune.front.steps import Make, Step
from taskprune.report.balance import TriedWeights

_log = logging.getLogger("taskprune")

FACTOR = 2.0
"""What the task that lost most counts more at first."""


@dataclass
class Balance:
    """Makes a step several times, with other weights of the tasks, and keeps the best.

    The best is the one whose worst task has lost least: as a part of its tolerance where all tasks
    have one, else of the original's metric. The weights that a step was made with are what the next
    one starts from.

    Attributes:
        judge: Measures every task.
        before: The metrics of the original.
        most: How many times more each step is made at most.
        tried: All that was tried.
    """

    judge: Judge
    before: Mapping[str, float]
    most: int
    tried: list[TriedWeights] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._factors = dict.fromkeys(self.judge.tasks, 1.0)
        tolerances = {name: task.tolerance for name, task in self.judge.tasks.items()}
        known = {name: float(most) for name, most in tolerances.items() if most}
        self._units = known if len(known) == len(tolerances) else None

    def __call__(self, found: Examined, make: Make, say: Say) -> Step:
        """Make a step of what was examined."""
        if not self._can_weigh(found):
            return make(found, say)
        factors, factor, narrows = self._factors, FACTOR, False
        best = self._measured(found, make, say, factors)
        kept = len(self.tried) - 1
        for number in range(1, self.most + 1):
            lost = changes(self.before, _metrics(best), self._units)
            worst = min(lost, key=lambda task: lost[task])
            if not -math.inf < lost[worst] < 0:
                break
            more = {**factors, worst: factors[worst] * factor}

            def tell(what: str, number: int = number) -> None:
                say(f"weighing the tasks, try {number} of {self.most}: {what}")

            step: Step | None
            try:
                step = self._measured(found, make, tell, more)
            except InfeasibleBudgetError as error:
                _log.info("%s counted more: %s", worst, error)
                step = None
            if step is not None and self._worst(step) > lost[worst]:
                best, factors, kept = step, more, len(self.tried) - 1
            else:
                narrows = True
            factor = math.sqrt(factor) if narrows else factor
        self._factors = factors
        self.tried[kept] = replace(self.tried[kept], kept=True)
        return best

    def _worst(self, step: Step) -> float:
        return worst_change(self.before, _metrics(step), self._units)

    def _can_weigh(self, found: Examined) -> bool:
        """Whether the scores can be weighed anew, and every task is measured."""
        tasks = found.scores.tasks
        known = all(math.isfinite(self.before.get(task, math.nan)) for task in tasks)
        return self.most > 0 and len(tasks) > 1 and known and found.scores.reweighted is not None

    def _measured(
        self, found: Examined, make: Make, say: Say, factors: Mapping[str, float]
    ) -> Step:
        own = {name: task.weight * factors[name] for name, task in self.judge.tasks.items()}
        as_given = all(factor == 1 for factor in factors.values())
        step = make(found if as_given else found.reweighted(own), say)
        say("measuring every task")
        metrics = self.judge(step.model)
        self.tried.append(TriedWeights(step.number, dict(factors), metrics, kept=False))
        return replace(step, metrics=metrics)


def _metrics(step: Step) -> Mapping[str, float]:
    assert step.metrics is not None
    return step.metrics
