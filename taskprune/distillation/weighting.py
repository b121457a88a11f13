"""What learning the weights of losses takes, whatever the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

DISTILLATION = "distillation"
"""Name of the one term that all feature and output losses make up together."""


class Weighting(Protocol):
    """Learns the factors of the loss's terms: the tasks by name, and :data:`DISTILLATION`.

    What is learnt is a flat mapping of numbers, empty at the start, so that it can be saved with
    the run.
    """

    @property
    def shared(self) -> str | None:
        """Path of the student's module in whose parameters gradients are measured, if any."""

    def weight(self, learnt: Mapping[str, float], term: str) -> float:
        """Return the factor of a term; it comes beside ``Task.weight`` and ``feature_weight``."""

    def updated(
        self,
        learnt: Mapping[str, float],
        losses: Mapping[str, float],
        norms: Mapping[str, float],
    ) -> dict[str, float]:
        """Return what is learnt after one more step.

        Args:
            learnt: Before the step.
            losses: Unweighted, per term present in the step; means over batches and processes.
            norms: Norms of their gradients in the shared module; empty without one.
        """
