"""How readers are re-weighted; the defaults are what the benchmark found best."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CompensationSettings:
    """How readers are re-weighted.

    Attributes:
        floor: What a row counts that no task's loss says anything of; 1 is the mean of a task.
        power: Rows count by the squared norm of a task's gradient to this power. Below 1 a few
            rows with large gradients, whose errors are hardly more than noise, weigh less.
        rows: Rows to look at of each call and batch at most.
        entries: Entries of a call's input to look at of each batch at most.
        most_channels: Channels up to which products of channels are kept, of which there are the
            square; of wider readers a sample of rows is kept instead.
        most_unknowns: Channels times taps up to which taps are fitted apart.
        aware: Fit to what is read in the smaller network, its errors included, wherever its rows
            are the positions that the teacher's are.
        cautious: Measure the losses of the result, and undo what a task is worse off with.
    """

    floor: float = 0.01
    power: float = 0.5
    rows: int = 1024
    entries: int = 2**22
    most_channels: int = 2048
    most_unknowns: int = 1536
    aware: bool = True
    cautious: bool = True
