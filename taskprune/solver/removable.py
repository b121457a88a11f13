"""What of each group may go under the limits, in which order, and what holds the rest."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from taskprune.coupling.groups import CouplingGroup, CouplingGroups, IntArray
from taskprune.errors import InputError
from taskprune.importance.accumulation import accumulated
from taskprune.importance.scores import BLIND, ChannelScores
from taskprune.solver.safety import Safety
from taskprune.solver.step_context import ALONE, StepContext

Limit: TypeAlias = str
"""What holds a group back: a field of :class:`Safety` (``"round_to"`` where single channels could
still go, but no step of so many), ``"protected"`` for the quantile, ``"step"`` where an operator
takes no width in between, ``"fewest"`` where it takes none below, :data:`UNREAD`,
:data:`SAVES_NO_TIME`, and ``"max_loss_increase of lane"`` with the task that can afford no more."""

UNREAD: Limit = "unread parameters"
"""Code that no trace has seen could read the group, see :attr:`Safety.unused`."""

SAVES_NO_TIME: Limit = "saves no time"
"""Only the latency is bounded, and what the group's channels take is not measurable."""


@dataclass(frozen=True, eq=False, slots=True)
class Removable:
    """What of one group may go, and in which order.

    Attributes:
        group: The group.
        order: Channel numbers, first to go first; no others may go. Shape ``[n_removable]``.
        scores: What each adds to those before it, ascending, float64. Shape ``[n_removable]``; see
            :func:`~taskprune.importance.accumulation.accumulated`.
        held_by: The limit that keeps the next channel.
    """

    group: CouplingGroup
    order: IntArray
    scores: NDArray[np.float64]
    held_by: Limit


@dataclass(frozen=True, slots=True)
class BoundLimit:
    """A limit that holds a group back in a plan.

    Attributes:
        group: Name of the group, of which no more channels could go.
        n_kept: How many stay.
        limit: Which limit it was.
    """

    group: str
    n_kept: int
    limit: Limit


def removable(
    groups: CouplingGroups, scores: ChannelScores, safety: Safety, context: StepContext = ALONE
) -> tuple[Removable, ...]:
    """Work out what may be removed from each group, in the groups' order.

    Ties between channels are broken by their numbers.

    Args:
        groups: The groups of the model at hand.
        scores: Scores of their channels.
        safety: The limits.
        context: What earlier steps have used of them.

    Raises:
        InputError: The scores are not those of these groups.
    """
    for group in groups:
        n_scores = len(scores[group.name].total)
        if n_scores != group.n_channels:
            raise InputError(
                f"Group `{group.name}` has {group.n_channels} channels and {n_scores} scores. "
                "Score and solve with the same groups."
            )
    protected = _protected(groups, scores, safety.protected_quantile)
    return tuple(
        _removable(group, scores, safety, context, protected[group.name], len(groups.tasks))
        for group in groups
    )


def without(
    parts: Sequence[Removable], names: Collection[str], limit: Limit
) -> tuple[Removable, ...]:
    """Return the same with nothing to remove from the groups of these names."""
    return tuple(
        replace(part, order=part.order[:0], scores=part.scores[:0], held_by=limit)
        if part.group.name in names
        else part
        for part in parts
    )


def bound_limits(
    parts: Sequence[Removable], kept: Mapping[str, int], safety: Safety
) -> tuple[BoundLimit, ...]:
    """Return the limits that a plan with these kept counts runs into.

    They bind where not even one more step of ``round_to`` channels could go. Where single channels
    could, it is that step which holds the group.

    Args:
        parts: What may go, by group.
        kept: ``{group name: channels that stay}``.
        safety: What sets the step.
    """
    bound = []
    for part in parts:
        n_kept = kept[part.group.name]
        could_go = len(part.order) - (part.group.n_channels - n_kept)
        step = part.group.step
        if could_go < max(safety.multiple, step):
            limit = "round_to" if could_go >= step else "step" if could_go > 0 else part.held_by
            bound.append(BoundLimit(part.group.name, n_kept, limit))
    return tuple(bound)


def _removable(
    group: CouplingGroup,
    scores: ChannelScores,
    safety: Safety,
    context: StepContext,
    protected: NDArray[np.bool_],
    n_tasks: int,
) -> Removable:
    total = scores[group.name].total.numpy()
    order = np.argsort(total, kind="stable")
    order = order[~protected[order]]
    n = group.n_channels
    private = len(group.tasks) <= 1 and n_tasks > len(group.tasks)
    cap = min(safety.max_removed, safety.max_removed_private) if private else safety.max_removed
    has_readers = context.is_whole(group) and bool(safety.readers(group))
    allowed: dict[Limit, int] = {
        UNREAD: 0 if has_readers else n,
        "protected": len(order),
        "min_channels": max(0, n - math.ceil(safety.min_channels / channel_width(group))),
        "max_removed_private" if private else "max_removed": context.most_removable(group, cap),
        "fewest": n - group.fewest,
    }
    held_by: Limit = min(allowed, key=lambda limit: allowed[limit])
    order = order[: allowed[held_by]]
    return Removable(group, order, accumulated(total[order], scores.correlation), held_by)


def channel_width(group: CouplingGroup) -> int:
    """How many positions of the tensor that makes it one channel of the group takes."""
    widths = [m.index.shape[1] for m in group.members if m.produces]
    return max(1, min(widths, default=1))


def _protected(
    groups: CouplingGroups, scores: ChannelScores, quantile: float
) -> dict[str, NDArray[np.bool_]]:
    protected = {group.name: np.zeros(group.n_channels, dtype=np.bool_) for group in groups}
    if quantile == 1 or len(scores.tasks) == 1:
        return protected
    for row, task in enumerate(scores.tasks):
        reached = [group for group in groups if _reaches(task, group, scores.tasks)]
        if not reached:
            continue
        per_group = [scores[group.name].per_task[row].numpy() for group in reached]
        threshold = np.quantile(np.concatenate(per_group), quantile)
        for group, own in zip(reached, per_group, strict=True):
            protected[group.name] |= own > threshold
    return protected


def _reaches(task: str, group: CouplingGroup, rows: Sequence[str]) -> bool:
    return tuple(rows) == BLIND or not group.tasks or task in group.tasks
