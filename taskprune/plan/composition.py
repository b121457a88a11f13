"""Composing plans: one that does what two do in turn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from taskprune.cost.names import MEASURED
from taskprune.errors import PlanMismatchError
from taskprune.plan.decisions import GroupDecision, KeptEntries
from taskprune.plan.plan import PruningPlan

REGROUPED = " (regrouped)"
"""Ends the name of a group that only formed once a first plan was carried out.

With one attention head left, for example, the head's width can shrink. The channel numbers of such
a group are those of the model in which it formed.
"""


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """Return the one plan that does what ``first`` and then ``second`` do.

    Args:
        first: A plan for the original model.
        second: A plan for the model that ``first`` makes, in its coordinates.

    Raises:
        PlanMismatchError: ``second`` was made for another model.
    """
    if first.pruned_shapes != {name: tuple(shape) for name, shape in second.shapes.items()}:
        found = {n: tuple(s) for n, s in second.shapes.items()}
        names = sorted(set(first.pruned_shapes) | set(found))
        odd = next(n for n in names if first.pruned_shapes.get(n) != found.get(n))
        raise PlanMismatchError(
            f"Expected the second plan to be for the model the first one makes, with `{odd}` of "
            f"shape {first.pruned_shapes.get(odd)}. Found {found.get(odd)}. Trace and solve again "
            "on the pruned model."
        )
    changed = {(a.module, a.path): a for a in first.attributes}
    for later in second.attributes:
        place = later.module, later.path
        changed[place] = replace(later, before=changed.get(place, later).before)
    stays = {(a.module, a.path): a for a in (*first.kept_attributes, *second.kept_attributes)}
    groups, called = _composed_groups(first.groups, second.groups)
    later_reasons = (
        replace(why, group=called[why.group]) for why in second.rationale if why.group in called
    )
    return PruningPlan(
        groups=groups,
        tensors=_composed_entries(first.tensors, second.tensors),
        activations=_composed_entries(first.activations, second.activations),
        attributes=tuple(changed.values()),
        shapes=first.shapes,
        costs={
            name: (first.costs[name][0], after)
            for name, (before, after) in second.costs.items()
            # Multiply-adds traced on another batch size do not add up.
            if name in first.costs and (name in MEASURED or first.costs[name][1] == before)
        },
        replacements=tuple(dict.fromkeys((*first.replacements, *second.replacements))),
        frozen=second.frozen,
        rationale=(*first.rationale, *later_reasons),
        kept_attributes=tuple(kept for place, kept in stays.items() if place not in changed),
    )


def _composed_entries(
    first: Iterable[KeptEntries], second: Iterable[KeptEntries]
) -> tuple[KeptEntries, ...]:
    composed = {(kept.name, kept.dim): kept for kept in first}
    for later in second:
        earlier = composed.get((later.name, later.dim))
        if earlier is not None:
            keep = tuple(earlier.keep[position] for position in later.keep)
            later = KeptEntries(later.name, later.dim, earlier.size, keep)
        composed[later.name, later.dim] = later
    return tuple(composed[key] for key in sorted(composed))


def _composed_groups(
    first: Iterable[GroupDecision], second: Iterable[GroupDecision]
) -> tuple[tuple[GroupDecision, ...], dict[str, str]]:
    """Return the decisions, and what the second plan's groups are called among them."""
    composed = {decision.name: decision for decision in first}
    names: dict[str, str] = {}
    for later in second:
        name = later.name
        while name in composed and composed[name].n_kept != later.n_channels:
            name += REGROUPED
        earlier = composed.get(name)
        if earlier is None:
            if later.drop:
                name = name if name.endswith(REGROUPED) else name + REGROUPED
                composed[name] = replace(later, name=name)
                names[later.name] = name
            continue
        names[later.name] = name
        kept = np.delete(np.arange(earlier.n_channels), np.array(earlier.drop, dtype=np.int64))
        drop = (*earlier.drop, *kept[list(later.drop)].tolist())
        composed[name] = replace(
            later, name=name, n_channels=earlier.n_channels, drop=tuple(sorted(drop))
        )
    return tuple(composed.values()), names
