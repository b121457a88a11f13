"""What costs are called, and how their amounts are written."""

from __future__ import annotations

COST_NAMES = {
    "params": "parameters",
    "macs": "multiply-adds",
    "latency_ns": "latency",
    "activation_memory": "peak bytes of activations",
}
"""Costs by name, each in whole units, as a reader calls them."""


_OF = " of "


def modality_cost(cost: str, modality: str) -> str:
    """Return the name of a cost of one modality alone, such as ``"params of camera"``."""
    return f"{cost}{_OF}{modality}"


def of_modality(cost: str) -> tuple[str, str] | None:
    """Return ``("params", "camera")`` for the cost of a modality, ``None`` for others."""
    whole, of, modality = cost.partition(_OF)
    return (whole, modality) if of else None


def kind_of(cost: str) -> str:
    """Return what a cost counts, of the whole model or of a modality: ``"params"``."""
    return cost.partition(_OF)[0]


def cost_label(cost: str) -> str:
    """Return what a reader calls a cost."""
    whole, of, modality = cost.partition(_OF)
    return f"{COST_NAMES.get(whole, whole)}{of}{modality}"


def amount(cost: str, value: int) -> str:
    """Write an amount of a cost with its unit."""
    if cost == "latency_ns":
        return f"{value / 1e6:.3g} ms" if value < 1e9 else f"{value / 1e6:,.0f} ms"
    return f"{value:,} {cost_label(cost)}"


MEASURED = frozenset({"latency_ns"})
"""Costs that are measured, and so are never the same twice; the others are counted."""
