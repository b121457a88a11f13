"""What the pruned model may still cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from taskprune.errors import InputError

WORDS = {"params": "parameters", "macs": "multiply-adds"}
"""The costs a budget can bound, as a reader calls them."""


@dataclass(frozen=True)
class Budget:
    """Upper bounds on what remains; all that are given must hold.

    A float in (0, 1] is the fraction of the original that may remain; a whole number from 2 on
    (``3_000_000`` or ``3e6``) is an absolute bound.

    Attributes:
        params: Parameters of the model, frozen ones included.
        macs: Multiply-adds of one forward pass; an absolute bound is for one sample.
    """

    params: float | int | None = None
    macs: float | int | None = None

    def __post_init__(self) -> None:
        if self.params is None and self.macs is None:
            raise InputError("A budget must bound something: pass `params=` or `macs=` or both.")
        for name, bound in self.bounds.items():
            _check(name, bound)

    @classmethod
    def from_ratio(cls, ratio: float) -> Budget:
        """Make a budget from the fraction of the parameters to *remove*.

        Raises:
            InputError: The ratio does not lie between 0 and 1.
        """
        is_number = isinstance(ratio, Real) and not isinstance(ratio, bool)
        if not is_number or not 0 < ratio < 1:
            raise InputError(
                "The ratio is the fraction of the parameters to remove and must lie between 0 and "
                f"1, both excluded, such as 0.327. Found {ratio!r}."
            )
        return cls(params=1 - float(ratio))

    @property
    def bounds(self) -> dict[str, float | int]:
        """The bounds that were given, by name of the cost."""
        given = {"params": self.params, "macs": self.macs}
        return {name: bound for name, bound in given.items() if bound is not None}

    def limits(self, original: Mapping[str, int], *, batch_size: int = 1) -> dict[str, int]:
        """Return the bounds as whole numbers, in the units of ``original``.

        Args:
            original: Costs of the unpruned model; MACs of a whole batch.
            batch_size: Samples in that batch.
        """
        limits: dict[str, int] = {}
        for name, bound in self.bounds.items():
            if bound <= 1:
                limits[name] = math.floor(bound * original[name])
            else:
                limits[name] = int(bound) * (batch_size if name == "macs" else 1)
        return limits

    def __str__(self) -> str:
        return " and ".join(_in_words(name, bound) for name, bound in self.bounds.items())


def _check(name: str, bound: float | int) -> None:
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        raise InputError(f"`{name}` must be a number. Found {bound!r}.")
    if not math.isfinite(bound) or bound <= 0:
        raise InputError(f"`{name}` must be positive and finite. Found {bound!r}.")
    if bound > 1 and bound != int(bound):
        raise InputError(
            f"`{name}` must be the fraction that may remain, in (0, 1], or a whole number of "
            f"{WORDS[name]}. Found {bound!r}."
        )
    if bound == 1 and isinstance(bound, int):
        raise InputError(
            f"`{name}=1` could mean all of the {WORDS[name]} or a single one. Write 1.0 for all."
        )


def _in_words(name: str, bound: float | int) -> str:
    if bound <= 1:
        return f"{100 * bound:.4g} % of the {WORDS[name]}"
    return f"{int(bound):,} {WORDS[name]}{' a sample' if name == 'macs' else ''}"
