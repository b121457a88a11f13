"""Schedules: numbers that follow the step, as plain functions without state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from taskprune.errors import InputError

Schedule: TypeAlias = Callable[[int], float]
"""``step (from 0) -> value``. A function of the step alone, so there is nothing to save."""


@dataclass(frozen=True)
class WarmupCosine:
    """A linear rise to ``peak`` in ``warmup`` steps, then half a cosine down to ``floor``.

    Attributes:
        peak: Highest value.
        steps: Length of the run.
        warmup: Steps of rise; the first step already has ``peak / warmup``.
        floor: Value approached at the end.
    """

    peak: float
    steps: int
    warmup: int = 0
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        """Return the value at ``step``."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.floor + (self.peak - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Ramp:
    """A straight line from ``start`` to ``end`` over ``steps`` steps, then ``end``.

    Example:
        >>> DistillSettings(steps=1000, feature_weight=Ramp(2.0, 0.0, steps=800))
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"`Ramp.steps` must be at least 1. Found {self.steps}.")

    def __call__(self, step: int) -> float:
        """Return the value at ``step``."""
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int) -> float:  # noqa: ARG002 - a schedule is called with the step
        """Return the value."""
        return self.value
