"""Limits that hold whatever the scores say.

A ranking over the whole model can empty a layer, or the private head of a task, and no training
brings it back. The limits bind the solver; where they make a budget unreachable, it says so and
gives way in nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from taskprune.coupling.groups import CouplingGroup, CouplingGroups, IntArray
from taskprune.errors import InputError
from taskprune.importance.accumulation import accumulated
from taskprune.importance.scores import BLIND, ChannelScores
from taskprune.solver.multiples import multiple_for

Limit: TypeAlias = str
"""What holds a group back: a field of :class:`Safety` (``"round_to"`` where single channels could
still go, but no step of so many), ``"protected"`` for the quantile, and
``"max_loss_increase of lane"`` with the task that can afford no more."""


@dataclass(frozen=True)
class Safety:
    """Limits on what may be removed.

    Attributes:
        min_channels: Each group keeps at least this many channels, or all if it has fewer. A
            channel that holds several positions of a tensor, such as an attention head, counts as
            many.
        max_removed: Largest fraction of the channels of any group that may go.
        max_removed_private: The same for groups that only one of several tasks can reach, where
            nothing else in the model can take over for them, or none of the tasks: no score speaks
            for them.
        protected_quantile: Channels above this quantile of *any* task's own scores stay, however
            the tasks' scores and penalties add up. Taken over all channels that the task can
            reach; 1.0 protects none. Where there is a single row of scores it protects none
            either: nothing adds up there, and the order itself keeps the highest for last.
        round_to: Groups keep a multiple of this many channels; a number, or a name in
            :data:`~taskprune.solver.multiples.DEVICE_MULTIPLES` such as ``"tensor-core-fp16"``. A
            group may keep all, and where the multiples would miss the target by more than 0.5 % a
            few groups do not keep one; the report names them.
        max_loss_increase: By which fraction of itself the loss of a task may rise when the
            channels go, 0.05 for 5 %: one number for all tasks, or ``{task: number}`` for some.
            Predicted to first order, see :mod:`~taskprune.solver.loss_budget`; in steps the
            predictions add up, each from scores taken anew. Needs a criterion that knows, as the
            default does.
    """

    min_channels: int = 4
    max_removed: float = 0.9
    max_removed_private: float = 0.75
    protected_quantile: float = 0.95
    round_to: int | str = 1
    max_loss_increase: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        count = self.min_channels
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"`min_channels` must be a whole number from 1 on. Found {count!r}.")
        multiple_for(self.round_to)
        for name in ("max_removed", "max_removed_private", "protected_quantile"):
            fraction = getattr(self, name)
            if not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
                raise InputError(f"`{name}` must be a fraction from 0 to 1. Found {fraction!r}.")
        limits = self.max_loss_increase
        if limits is None:
            return
        for limit in limits.values() if isinstance(limits, Mapping) else (limits,):
            is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if not is_number or not 0 <= limit < math.inf:
                raise InputError(
                    "`max_loss_increase` must be a fraction from 0 on, such as 0.05, or "
                    f"{{task: fraction}}. Found {limit!r}."
                )

    @property
    def multiple(self) -> int:
        """The number of channels that ``round_to`` stands for."""
        return multiple_for(self.round_to)

    def loss_limits(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return ``max_loss_increase`` by task; empty where there is no limit."""
        limits = self.max_loss_increase
        if limits is None:
            return {}
        return dict(limits) if isinstance(limits, Mapping) else dict.fromkeys(tasks, limits)

    def most_removable(self, group: CouplingGroup, fraction: float) -> int:
        """Return how many channels of a group may go where at most this fraction of them may."""
        return int(fraction * group.n_channels + 1e-9)


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
    groups: CouplingGroups, scores: ChannelScores, safety: Safety
) -> tuple[Removable, ...]:
    """Work out what may be removed from each group, in the groups' order.

    Ties between channels are broken by their numbers.

    Raises:
        InputError: The scores are not those of these groups.
    """
    for group in groups:
        if group.name not in scores.total or group.name not in scores.per_task:
            raise InputError(
                f"The scores know no group `{group.name}`. Score and solve with the same groups."
            )
        if len(scores.total[group.name]) != group.n_channels:
            raise InputError(
                f"Group `{group.name}` has {group.n_channels} channels and "
                f"{len(scores.total[group.name])} scores. Score and solve with the same groups."
            )
    protected = _protected(groups, scores, safety.protected_quantile)
    return tuple(
        _removable(group, scores, safety, protected[group.name], len(groups.tasks))
        for group in groups
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
        if could_go < safety.multiple:
            limit = "round_to" if could_go > 0 else part.held_by
            bound.append(BoundLimit(part.group.name, n_kept, limit))
    return tuple(bound)


def _removable(
    group: CouplingGroup,
    scores: ChannelScores,
    safety: Safety,
    protected: NDArray[np.bool_],
    n_tasks: int,
) -> Removable:
    total = scores.total[group.name].numpy()
    order = np.argsort(total, kind="stable")
    order = order[~protected[order]]
    n = group.n_channels
    private = len(group.tasks) <= 1 and n_tasks > len(group.tasks)
    cap = min(safety.max_removed, safety.max_removed_private) if private else safety.max_removed
    allowed: dict[Limit, int] = {
        "protected": len(order),
        "min_channels": max(0, n - math.ceil(safety.min_channels / channel_width(group))),
        "max_removed_private" if private else "max_removed": safety.most_removable(group, cap),
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
        per_group = [scores.per_task[group.name][row].numpy() for group in reached]
        threshold = np.quantile(np.concatenate(per_group), quantile)
        for group, own in zip(reached, per_group, strict=True):
            protected[group.name] |= own > threshold
    return protected


def _reaches(task: str, group: CouplingGroup, rows: Sequence[str]) -> bool:
    return tuple(rows) == BLIND or not group.tasks or task in group.tasks
