"""Keep the weights with which the worst task was best."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from taskprune.distillation.kept_weights import KeptWeights
from taskprune.distillation.validation import Validation
from taskprune.errors import InputError

_log = logging.getLogger("taskprune")


@dataclass(frozen=True)
class Standing:
    """What the weights that are kept were worth.

    Attributes:
        step: After which they were measured; 0 is the student as it came.
        worst: Change of the task that lost most against the teacher.
        teacher: The teacher's figures.
    """

    step: int
    worst: float
    teacher: Mapping[str, float]


class BestWeights(KeptWeights):
    """The student's weights at the step at which the task that lost most had lost least.

    Args:
        student: Whose weights are kept.
        validation: Measures all tasks.

    Attributes:
        standing: Of what is kept; ``None`` until the run begins.
    """

    def __init__(self, student: nn.Module, validation: Validation) -> None:
        super().__init__(student)
        self.validation = validation
        self.standing: Standing | None = None

    def is_due(self, step: int, n_steps: int) -> bool:
        """Whether the student is measured after a step: every so often, and at the end."""
        return step == n_steps or step % self.validation.every == 0

    def begin(self, teacher: nn.Module, student: nn.Module) -> None:
        """Measure both models before the first step.

        Raises:
            InputError: No task has a figure.
        """
        goal = {n: v for n, v in self.validation.measured(teacher).items() if not math.isnan(v)}
        if not goal:
            raise InputError(
                "The best weights are those with which the task that lost most has lost least. "
                "Found that the metric of every task is NaN for the teacher. Pass `Validation` "
                "data with labels."
            )
        figures = self.validation.measured(student)
        self.standing = Standing(0, worst_change(goal, figures), goal)

    def see(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep the student's present weights if its figures say that they are better."""
        from accelerate.utils import broadcast_object_list

        assert self.standing is not None
        teacher = self.standing.teacher
        # Processes that would keep weights of different steps would end with a mixture.
        worst = broadcast_object_list([worst_change(teacher, figures)])[0]
        if worst > self.standing.worst:
            self.take()
            self.standing = Standing(step, worst, teacher)

    def give_best(self) -> int:
        """Give the student what is kept, and return the step that it is from."""
        assert self.standing is not None
        self.give()
        _log.info(
            "best weights: those of step %d, where the worst task is %.2f %% below the teacher",
            self.standing.step,
            -100 * self.standing.worst,
        )
        return self.standing.step


def worst_change(teacher: Mapping[str, float], student: Mapping[str, float]) -> float:
    """Return the least change of a figure as a part of the teacher's, as in multi-task surveys.

    A figure of the student's that is NaN counts as a loss without limit, and one of the teacher's
    that is 0 as 1.

    References:
        Vandenhende et al., *Multi-Task Learning for Dense Prediction Tasks: A Survey*, TPAMI 2021,
        arXiv:2004.13379, equation 8 (of which this is the worst term instead of the mean).
    """
    changes = [(student[name] - goal) / (abs(goal) or 1.0) for name, goal in teacher.items()]
    return -math.inf if any(map(math.isnan, changes)) else min(changes)
