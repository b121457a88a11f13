"""Saying what cannot be met, what can, and what holds most."""

from __future__ import annotations

import math

from taskprune.cost.units import amount
from taskprune.coupling.groups import CouplingGroups, FrozenGroup
from taskprune.safety import Safety
from taskprune.solver.account import Account


def infeasible(groups: CouplingGroups, account: Account, safety: Safety) -> str:
    """Say which bound cannot be met, what can be reached, and the largest frozen group."""
    name = next(n for n, limit in account.limits.items() if account.lowest(n) > limit)
    original, limit, lowest = account.original[name], account.limits[name], account.lowest(name)
    held = sum(part.group.n_channels - len(part.order) for part in account.parts)
    return (
        f"At most {amount(name, limit)} ({limit / max(1, original):.2%}) cannot be met: with "
        f"{safety} the smallest reachable model has {_of(name, lowest, original)}, which removes "
        f"{1 - lowest / max(1, original):.2%}. The limits hold {held} channels of "
        f"{len(groups)} groups. {_largest_frozen(groups)} Allow more in the budget or in `safety=`."
    )


def _of(name: str, lowest: int, original: int) -> str:
    if name == "latency_ns":
        return f"{amount(name, lowest)} of {amount(name, original)}"
    return f"{lowest:,} of {original:,}"


def _largest_frozen(groups: CouplingGroups) -> str:
    """Say which frozen channels hold most parameters, leaving out dims that are not channels."""
    candidates = [g for g in groups.frozen if g.reasons and g.reasons[0].kind != "structure"]
    if not candidates:
        return "No group is frozen."
    largest = max(candidates, key=lambda group: _held_params(groups, group))
    reason = largest.reasons[0]
    where = f" ({reason.source})" if reason.source else ""
    return (
        f"Largest frozen group: `{largest.name}` ({largest.n_channels} channels, "
        f"{_held_params(groups, largest):,} parameters): {reason.detail}{where}."
    )


def _held_params(groups: CouplingGroups, frozen: FrozenGroup) -> int:
    held = 0
    for member in frozen.members:
        if member.name in groups.parameter_names:
            shape = groups.shapes[member.name]
            held += member.index.size * math.prod(shape) // max(1, shape[member.dim])
    return held
