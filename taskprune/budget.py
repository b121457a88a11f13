"""What the pruned model may still cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from taskprune.cost.units import COST_NAMES
from taskprune.errors import InputError

FIELDS = {
    "params": "params",
    "macs": "macs",
    "latency_ms": "latency_ns",
    "activation_memory": "activation_memory",
}
"""The fields of a budget, and the cost that each bounds."""


@dataclass(frozen=True)
class Budget:
    """Upper bounds on what remains; all that are given must hold.

    A float in (0, 1] is the fraction of the original that may remain; a whole number from 2 on
    (``3_000_000`` or ``3e6``) is an absolute bound. Milliseconds need not be whole, but a latency
    of 1 ms or less can only be given as a fraction.

    Attributes:
        params: Parameters of the model, frozen ones included.
        macs: Multiply-adds of one forward pass; an absolute bound is for one sample.
        latency_ms: Milliseconds of one forward pass on the traced inputs, whole batch, as predicted
            from measurements on the device at hand.
        activation_memory: Peak bytes of activations in one forward pass on the traced inputs, whole
            batch; see :class:`~taskprune.cost.ActivationMemory`.
    """

    params: float | int | None = None
    macs: float | int | None = None
    latency_ms: float | int | None = None
    activation_memory: float | int | None = None

    def __post_init__(self) -> None:
        given = {field: getattr(self, field) for field in FIELDS}
        if all(bound is None for bound in given.values()):
            raise InputError(
                "A budget must bound something: pass `params=`, `macs=`, `latency_ms=` or "
                "`activation_memory=`, or several of them."
            )
        for field, bound in given.items():
            if bound is not None:
                _check(field, bound)

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
        """The bounds that were given, by name of the cost; of latency in milliseconds."""
        given = {cost: getattr(self, field) for field, cost in FIELDS.items()}
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
            elif name == "latency_ns":
                limits[name] = math.floor(bound * 1e6)
            else:
                limits[name] = int(bound) * (batch_size if name == "macs" else 1)
        return limits

    def __str__(self) -> str:
        return " and ".join(_in_words(name, bound) for name, bound in self.bounds.items())


def _check(field: str, bound: float | int) -> None:
    what = "milliseconds" if field == "latency_ms" else COST_NAMES[FIELDS[field]]
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        raise InputError(f"`{field}` must be a number. Found {bound!r}.")
    if not math.isfinite(bound) or bound <= 0:
        raise InputError(f"`{field}` must be positive and finite. Found {bound!r}.")
    if bound > 1 and bound != int(bound) and field != "latency_ms":
        raise InputError(
            f"`{field}` must be the fraction that may remain, in (0, 1], or a whole number of "
            f"{what}. Found {bound!r}."
        )
    if bound == 1 and isinstance(bound, int):
        raise InputError(
            f"`{field}=1` could mean all of the {what} or a single one. Write 1.0 for all."
        )


def _in_words(cost: str, bound: float | int) -> str:
    if bound <= 1:
        return f"{100 * bound:.4g} % of the {COST_NAMES[cost]}"
    if cost == "latency_ns":
        return f"a latency of {bound:g} ms"
    return f"{int(bound):,} {COST_NAMES[cost]}{' a sample' if cost == 'macs' else ''}"
