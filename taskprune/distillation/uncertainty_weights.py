"""Weights of tasks that are learnt while training: homoscedastic uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from taskprune.distillation.weighting import DISTILLATION
from taskprune.errors import InputError


@dataclass(frozen=True)
class UncertaintyWeights:
    r"""Minimise :math:`\sum_t \frac{1}{2} e^{-s_t} L_t + \frac{1}{2} s_t` in the :math:`s_t` too.

    :math:`s_t = \log \sigma_t^2` is the noise of task :math:`t`. A task's own ``weight`` multiplies
    what is learnt. The gradient in :math:`s_t` is known in closed form, so it is descended by
    itself, once per optimizer step with the mean loss over all batches and processes; a task
    without labels in a step keeps its :math:`s_t`. Only tasks are weighed; the feature losses have
    ``feature_weight``.

    Example:
        >>> DistillSettings(steps=1000, weighting=UncertaintyWeights())

    Attributes:
        learning_rate: Of the :math:`s_t`. One step moves an :math:`s_t` by at most ``largest_move``
            so that a single outlier does not silence a task.
        largest_move: See above.

    References:
        Kendall, Gal and Cipolla, *Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
        Geometry and Semantics*, CVPR 2018, arXiv:1705.07115, section 3.
    """

    learning_rate: float = 0.01
    largest_move: float = 0.1

    def __post_init__(self) -> None:
        for name in ("learning_rate", "largest_move"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(
                    f"`UncertaintyWeights.{name}` must be a positive number. Found {value!r}."
                )

    @property
    def shared(self) -> None:
        """No gradients are measured: the losses say it all."""

    def weight(self, learnt: Mapping[str, float], term: str) -> float:
        """Return the factor of a task's loss; 1/2 at the start, as in the paper."""
        return 1.0 if term == DISTILLATION else 0.5 * math.exp(-learnt.get(term, 0.0))

    def updated(
        self,
        learnt: Mapping[str, float],
        losses: Mapping[str, float],
        norms: Mapping[str, float],  # noqa: ARG002 - other methods need them
    ) -> dict[str, float]:
        """Return the log variances after one step of descent on these losses."""
        new = dict(learnt)
        for task, loss in losses.items():
            if task == DISTILLATION:
                continue
            s = new.get(task, 0.0)
            move = self.learning_rate * 0.5 * (1.0 - math.exp(-s) * loss)
            new[task] = s - max(-self.largest_move, min(self.largest_move, move))
        return new
