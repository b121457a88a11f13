"""What the pruned model may still cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real

from taskprune.cost import ActivationMemory, Cost, CostModel
from taskprune.cost.names import COST_NAMES, cost_label, kind_of, modality_cost
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError, short

FIELDS = {
    "params": "params",
    "macs": "macs",
    "latency_ms": "latency_ns",
    "activation_memory": "activation_memory",
}
"""The fields of a budget, and the cost that each bounds."""

COUNTED: Mapping[str, Callable[[CouplingGroups], Cost]] = {
    "params": CostModel.of_params,
    "macs": CostModel.of_macs,
    "activation_memory": ActivationMemory,
}
"""What counts a cost of given groups; others have to be measured first."""

ALWAYS = ("params", "macs")
"""Costs that every plan tells, whatever is bounded."""


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
        modalities: Bounds on the parameters and multiply-adds of single modalities, or of the
            ``"fusion"``, beside those of the whole: ``{"camera": Budget(params=0.5)}``. A fraction
            is of the modality's own; see :func:`taskprune.cost.modality_costs`.
    """

    params: float | int | None = None
    macs: float | int | None = None
    latency_ms: float | int | None = None
    activation_memory: float | int | None = None
    modalities: Mapping[str, Budget] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in FIELDS}
        _check_modalities(self.modalities)
        if all(bound is None for bound in given.values()) and not self.modalities:
            raise InputError(
                "A budget must bound something: pass `params=`, `macs=`, `latency_ms=`, "
                "`activation_memory=` or `modalities=`, or several of them."
            )
        for name, bound in given.items():
            if bound is not None:
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
                f"1, both excluded, such as 0.327. Found {short(ratio)}."
            )
        return cls(params=1 - float(ratio))

    @property
    def bounds(self) -> dict[str, float | int]:
        """The bounds that were given, by name of the cost; of latency in milliseconds."""
        given = {cost: getattr(self, name) for name, cost in FIELDS.items()}
        for modality, own in self.modalities.items():
            given |= {modality_cost(cost, modality): b for cost, b in own.bounds.items()}
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
                limits[name] = int(bound) * (batch_size if kind_of(name) == "macs" else 1)
        return limits

    def __str__(self) -> str:
        return " and ".join(_in_words(name, bound) for name, bound in self.bounds.items())


def _check(field: str, bound: float | int) -> None:
    what = "milliseconds" if field == "latency_ms" else COST_NAMES[FIELDS[field]]
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        raise InputError(f"`{field}` must be a number. Found {short(bound)}.")
    if not math.isfinite(bound) or bound <= 0:
        raise InputError(f"`{field}` must be positive and finite. Found {short(bound)}.")
    if bound > 1 and bound != int(bound) and field != "latency_ms":
        raise InputError(
            f"`{field}` must be the fraction that may remain, in (0, 1], or a whole number of "
            f"{what}. Found {short(bound)}."
        )
    if bound == 1 and isinstance(bound, int):
        raise InputError(
            f"`{field}=1` could mean all of the {what} or a single one. Write 1.0 for all."
        )


def _in_words(cost: str, bound: float | int) -> str:
    if bound <= 1:
        return f"{100 * bound:.4g} % of the {cost_label(cost)}"
    if cost == "latency_ns":
        return f"a latency of {bound:g} ms"
    return f"{int(bound):,} {cost_label(cost)}{' a sample' if kind_of(cost) == 'macs' else ''}"


def _check_modalities(modalities: object) -> None:
    if not isinstance(modalities, Mapping):
        raise InputError(
            "`modalities` must be bounds by modality, {'camera': Budget(params=0.5)}. Found "
            f"{short(modalities)}."
        )
    for name, own in modalities.items():
        if not isinstance(name, str) or not isinstance(own, Budget):
            raise InputError(
                f"`modalities` must hold a `Budget` by name. Found {short(name)}: {short(own)}."
            )
        other = sorted(set(own.bounds) - {"params", "macs"})
        if other:
            raise InputError(
                "Of a single modality, parameters and multiply-adds can be bounded. Found "
                f"{cost_label(other[0])} for `{name}`."
            )
