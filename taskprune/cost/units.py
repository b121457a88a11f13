"""What costs are called, and how their amounts are written."""

from __future__ import annotations

COST_NAMES = {
    "params": "parameters",
    "macs": "multiply-adds",
    "latency_ns": "latency",
    "activation_memory": "peak bytes of activations",
}
"""Costs by name, each in whole units, as a reader calls them."""


def amount(cost: str, value: int) -> str:
    """Write an amount of a cost with its unit."""
    if cost == "latency_ns":
        return f"{value / 1e6:.3g} ms" if value < 1e9 else f"{value / 1e6:,.0f} ms"
    return f"{value:,} {COST_NAMES.get(cost, cost)}"


MEASURED = frozenset({"latency_ns"})
"""Costs that are measured, and so are never the same twice; the others are counted."""
