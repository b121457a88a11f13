"""The one-cycle schedule of the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from taskprune.errors import InputError


@dataclass(frozen=True)
class OneCycle:
    """A straight line up to ``peak``, one as long back down, then on down to nearly nothing.

    Example:
        >>> DistillSettings(steps=1000, learning_rate=OneCycle(peak=1e-3, steps=1000))

    Attributes:
        peak: Highest value, in the middle of the cycle.
        steps: Length of the run; the value stays at its last one after that.
        start: Where the cycle begins and ends, as a fraction of ``peak``.
        end: What is reached at the last step, as a fraction of ``peak``.
        tail: Part of the steps that come after the cycle.

    References:
        Smith and Topin, *Super-Convergence: Very Fast Training of Neural Networks Using Large
        Learning Rates*, 2017, arXiv:1708.07120, section 3. Momentum stays as it is.
    """

    peak: float
    steps: int
    start: float = 0.04
    end: float = 4e-4
    tail: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.peak > 0:
            raise InputError(
                "`OneCycle` needs a positive `peak` and `steps` of at least 1. Found "
                f"{self.peak!r} and {self.steps!r}."
            )
        if not (0 < self.end <= self.start <= 1 and 0 <= self.tail < 1):
            raise InputError(
                "`OneCycle` needs 0 < end <= start <= 1 and 0 <= tail < 1. Found "
                f"end={self.end!r}, start={self.start!r}, tail={self.tail!r}."
            )

    def __call__(self, step: int) -> float:
        """Return the value at ``step`` (from 0)."""
        last = max(1, self.steps - 1)
        cycle = max(1.0, last * (1 - self.tail))
        if step <= cycle:
            height = 1 - abs(2 * step / cycle - 1)
            return self.peak * (self.start + (1 - self.start) * height)
        fallen = min(1.0, (step - cycle) / max(1e-9, last - cycle))
        return self.peak * (self.start + (self.end - self.start) * fallen)
