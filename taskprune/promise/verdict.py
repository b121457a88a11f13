"""What held-out samples say of one task of one model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """What samples say of one task.

    Attributes:
        holds: Whether the task may be promised to lose no more than its tolerance.
        samples: How many there are.
        lost: What the task lost on them.
        at_most: What it loses at most, with the confidence asked for.
        needed: How many samples like these it would take; ``None`` where it holds, where no number
            does, or where the method cannot tell.
        least: How many it takes at the very least, where nothing at all is lost; ``None`` where the
            method cannot tell.
    """

    holds: bool
    samples: int
    lost: float
    at_most: float
    needed: int | None
    least: int | None
