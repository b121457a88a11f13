"""What compensation returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from taskprune.plan.plan import PruningPlan
from taskprune.rewrite.surgery import copy_with


@dataclass(frozen=True, slots=True)
class ReaderReport:
    """What was done to one parameter that reads channels.

    Attributes:
        name: The parameter, or ``stack[3]`` for a matrix that is picked out of it.
        dropped: How many of the channels that it read go.
        gain: Fraction of its output's squared error, as the tasks weigh it, that went away.
        ridge: Of the channel map, relative to the mean square of the channels; ``None`` where it
            changed nothing.
        tap_ridge: Of the fit over taps and channels that follows it; ``None`` likewise.
        aware: Whether it was fitted to what it reads in the smaller network, errors included.
        shifted: Name of the bias or running mean that took the shift; empty where none could.
        undone: Why it was given back, or left as sliced; empty where it was changed.
        folded: Of a weight that makes queries: fraction of the squared error of their products with
            the keys that went away by what was folded into it.
    """

    name: str
    dropped: int = 0
    gain: float = 0.0
    ridge: float | None = None
    tap_ridge: float | None = None
    aware: bool = False
    shifted: str = ""
    undone: str = ""
    folded: float = 0.0


@dataclass(frozen=True, slots=True)
class LossReport:
    """A task's mean loss on the calibration data.

    Attributes:
        original: Of the original.
        sliced: Of the smaller model with the weights that it was left.
        compensated: Of the smaller model as it is now.
    """

    original: float
    sliced: float
    compensated: float


@dataclass(frozen=True, eq=False)
class CompensationResult:
    """The smaller model, and what was done to it.

    Attributes:
        model: The smaller model with its readers re-weighted.
        readers: A record for each, in the order of the forward pass.
        weights: Readers and what took their shifts, in the coordinates of the original: entries
            that read dropped channels are 0, and so are the rows that make queries of dropped
            channels where others were folded.
        losses: ``{task: its loss}`` on the calibration data; without labels the squared distance
            of each output from the original's, in units of its variance.
    """

    model: nn.Module
    readers: tuple[ReaderReport, ...]
    weights: Mapping[str, Tensor]
    losses: Mapping[str, LossReport] = field(default_factory=dict)

    def original(self, model: nn.Module, plan: PruningPlan) -> nn.Module:
        """Return a copy of the original with the new weights: pruned by `plan`, it is the result.

        Args:
            model: The original.
            plan: The plan it was compensated for.
        """
        return copy_with(
            model, lambda name, data: self.weights.get(name, data).to(data), plan.replacements
        )
