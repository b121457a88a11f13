"""Saying what cannot be met, what can, and what holds most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from taskprune.cost import Cost
from taskprune.cost.names import MEASURED, amount
from taskprune.coupling.groups import CouplingGroups, FrozenGroup
from taskprune.errors import InfeasibleBudgetError
from taskprune.importance.scores import ChannelScores
from taskprune.solver.account import Account
from taskprune.solver.budget import Budget
from taskprune.solver.removable import channel_width, removable
from taskprune.solver.safety import Safety
from taskprune.solver.step_context import StepContext

NAMED = 8
"""How many names a sentence lists at most; the report has all."""


def check_ahead(
    groups: CouplingGroups,
    scores: ChannelScores,
    models: Mapping[str, Cost],
    budget: Budget,
    safety: Safety,
    context: StepContext,
) -> None:
    """Hold what later steps will ask for against what can be reached at all.

    Only by limits that no later step sees otherwise: which channels are protected depends on
    scores, and what is measured differs from step to step.

    Raises:
        InfeasibleBudgetError: A later step cannot be made.
    """
    if not context.looks_ahead or context.step == context.steps:
        return
    last = replace(context, step=context.steps)
    parts = removable(groups, scores, replace(safety, protected_quantile=1.0), last)
    costs = {name: model.value() for name, model in models.items()}
    account = Account(parts, models, last.limits(budget, costs, batch_size=groups.batch_size))
    for name, limit in account.limits.items():
        if name not in MEASURED and _lowest_ahead(account, name) > limit:
            raise InfeasibleBudgetError(infeasible(groups, account, safety, last))


def _lowest_ahead(account: Account, name: str) -> int:
    """Return a bound from below of a cost after all steps.

    Where a single head of attention is left, its width can shrink in a later step: it counts as
    nothing.
    """
    left = [part.group.n_channels - len(part.order) for part in account.parts]
    wide = [channel_width(part.group) > 1 for part in account.parts]
    counts = [0 if n == 1 and is_wide else n for n, is_wide in zip(left, wide, strict=True)]
    return account.models[name].value(np.array(counts, dtype=np.int64))


def infeasible(
    groups: CouplingGroups, account: Account, safety: Safety, context: StepContext
) -> str:
    """Say which bound cannot be met, what can be reached, and the largest frozen group.

    Fractions are of the model before the first step.
    """
    name = next((n for n, limit in account.limits.items() if account.lowest(n) > limit), None)
    if name is not None:
        lowest = account.lowest(name)
    else:  # a cost that rises where channels go, such as one that was measured
        name = max(account.limits, key=account.shortfall)
        lowest = account.cost(name)
    limit = account.limits[name]
    original = context.original.get(name, account.original[name])
    held = sum(part.group.n_channels - len(part.order) for part in account.parts)
    sentences = (
        f"{context.lead}At most {amount(name, limit)} ({limit / max(1, original):.2%}) cannot be "
        f"met: with {safety} the smallest reachable model has {_of(name, lowest, original)}, "
        f"which removes {1 - lowest / max(1, original):.2%}.",
        f"The limits hold {held} channels of {len(groups)} groups.",
        unread(groups, safety),
        _largest_frozen(groups),
        "Allow more in the budget or in `safety=`.",
    )
    return " ".join(sentence for sentence in sentences if sentence)


def unread(groups: CouplingGroups, safety: Safety) -> str:
    """Say which parameters no traced forward reads and what stays for them; nothing if none."""
    names = dict.fromkeys(groups.untraced)
    names.update(dict.fromkeys(name for group in groups for name in group.readers))
    unknown = [name for name in names if not safety.is_unused(name)]
    unused = [name for name in names if safety.is_unused(name)]
    told = []
    if unknown:
        held = [group.name for group in groups if safety.readers(group)]
        nothing = "no group is of a width that their code could read"
        stays = f"what their code could read stays whole, {_listed(held)}" if held else nothing
        told.append(
            f"No traced forward reads {_listed(unknown)}: {stays}. Hand in forwards that run them "
            "too, `forward=[..., ...]`, or name in `Safety(unused=...)` what nothing ever runs."
        )
    if unused:
        told.append(
            f"{_listed(unused)} are declared unused: they keep their shapes, and code that runs "
            "them may not fit any more."
        )
    return " ".join(told)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:NAMED]) + more


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
