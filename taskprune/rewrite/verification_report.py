"""What a verification has shown, as a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from taskprune.rewrite.comparison import OutputError
from taskprune.rewrite.rescaling import RescaledWeights

Oracle: TypeAlias = Literal["masked", "permutation", "shapes"]
Teller: TypeAlias = Literal["outputs", "drawn weights", "modules", "nothing"]


@dataclass(frozen=True, slots=True)
class ExcludedGroup:
    """A group that the masked original says nothing about, and how it was checked."""

    name: str
    reason: str
    checked_by: Literal["permutation", "shapes"]


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What comparing the rewritten model with the original has shown.

    Attributes:
        oracle: ``masked``: outputs equal those of the original with the removed channels silenced.
            ``permutation``: part of the groups cannot be checked that way (see ``excluded``) and
            were permuted in the original, whose outputs did not move. ``shapes``: for those groups
            it is only known that the model runs and its outputs have the right shapes.
        dtype: What both models were run in.
        samples: On how many of the example inputs' samples, entries along dim 0 of the first
            tensor, and how many there are; ``None`` if there is no such tensor.
        tolerance: Largest relative error let through.
        outputs: The measured error of each output.
        excluded: Groups outside the masked comparison.
        repeated_choices: How many top-k, sort or arg-max calls met ties and were made to agree.
        rescaled: Weights that come out as others because a statistic of them loses entries, which
            the masked original does not show.
        silent: Outputs that are the same whatever is removed, such as empty ones: that they are
            equal says nothing.
        told_by: What the comparison rests on. ``drawn weights``: the outputs, once parameters are
            drawn at random. ``modules``: what modules inside return. ``nothing``: nothing that was
            looked at tells anything, so it is only known that the model runs.
        drawn: Tensors that are constant or hold NaN, which hides mistakes: both models were
            compared with random values in their place.
    """

    oracle: Oracle
    dtype: str
    tolerance: float
    outputs: tuple[OutputError, ...]
    excluded: tuple[ExcludedGroup, ...] = ()
    repeated_choices: int = 0
    samples: tuple[int, int] | None = None
    rescaled: RescaledWeights | None = None
    silent: tuple[str, ...] = ()
    told_by: Teller = "outputs"
    drawn: tuple[str, ...] = ()

    @property
    def is_vacuous(self) -> bool:
        """Whether nothing was verified."""
        return self.told_by == "nothing"

    @property
    def max_relative_error(self) -> float:
        """The largest relative error among the outputs compared; 0 if none were."""
        return max((error.relative for error in self.outputs), default=0.0)

    def __str__(self) -> str:
        if self.is_vacuous:
            return (
                "nothing was verified: the removed channels move no output "
                f"({', '.join(self.silent)}), nor what modules return, also with random weights"
            )
        told = {"drawn weights": "; with random weights", "modules": "; by what modules return"}
        compared = self._compared() + told.get(self.told_by, "")
        if self.silent:
            compared += f"; the removed channels do not move {', '.join(self.silent)}"
        return compared

    def _compared(self) -> str:
        n_outputs = len(self.outputs)
        run, available = self.samples or (0, 0)
        part = f", {run} of {available} samples" if run < available else ""
        compared = (
            f"{n_outputs} output{'' if n_outputs == 1 else 's'} compared with the masked original, "
            f"largest relative error {self.max_relative_error:.1e} ({self.dtype}{part})"
        )
        if not self.excluded:
            return compared
        names = ", ".join(group.name for group in self.excluded[:3])
        more = f" and {len(self.excluded) - 3} more" if len(self.excluded) > 3 else ""
        return f"{compared}; by {self.excluded[0].checked_by} only: {names}{more}"
