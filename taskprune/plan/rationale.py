"""Why a plan drops what it drops, as data that the plan carries along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from taskprune.cost import Cost, CostModel
from taskprune.coupling.groups import CouplingGroups, FrozenGroup, IntArray
from taskprune.importance.scores import ChannelScores


@dataclass(frozen=True, slots=True)
class TaskShare:
    """What the dropped channels of one group mean to one task.

    Attributes:
        task: The task, or ``"all"`` where the criterion knows none.
        dropped: Sum of the task's own scores over the channels that go, those below 0 left out.
        total: The same over all channels of the group.
    """

    task: str
    dropped: float
    total: float


@dataclass(frozen=True, slots=True)
class Saving:
    """What one cost would rise to if the group got its dropped channels back.

    Attributes:
        cost: ``"params"`` or ``"macs"``, or ``"latency_ns"`` or ``"activation_memory"`` where the
            budget bounds it, in the units of :attr:`PruningPlan.costs`: of the whole traced batch.
        amount: By how much, with all other groups as planned.
        original: That cost of the unpruned model.
    """

    cost: str
    amount: int
    original: int


@dataclass(frozen=True, slots=True)
class GroupRationale:
    """Why one group loses the channels it loses, in one round of solving.

    Attributes:
        group: Its name.
        criterion: Name of the importance criterion.
        n_dropped: How many channels go in this round.
        shares: What they mean to each task.
        conflict: Sum of the conflict penalties on the channels that go, and on all of them; both
            0 where the criterion has no such term.
        highest_dropped: Highest total score among those that go; ``None`` if none goes.
        lowest_kept: Lowest total score among those that stay.
        savings: What their going saves.
        held_by: The safety limit that keeps the next channel; empty where none does.
        n_free: How many of those that go say nothing but what others say, see
            :mod:`taskprune.allocation`.
    """

    group: str
    criterion: str
    n_dropped: int
    shares: tuple[TaskShare, ...]
    conflict: tuple[float, float]
    highest_dropped: float | None
    lowest_kept: float
    savings: tuple[Saving, ...]
    held_by: str = ""
    n_free: int = 0


@dataclass(frozen=True, slots=True)
class FrozenDecision:
    """A group that stays whole, and the first thing that froze it.

    Attributes:
        name: The group's name.
        n_channels: How many channels it has.
        members: Names of the parameters and buffers they are entries of.
        kind: See :data:`~taskprune.coupling.groups.FreezeKind`.
        detail: One sentence.
        operator: The operator involved, or empty.
        module: Path of the module that ran it, or empty.
        source: ``file.py:line`` that called it, or empty.
    """

    name: str
    n_channels: int
    members: tuple[str, ...]
    kind: str
    detail: str
    operator: str = ""
    module: str = ""
    source: str = ""

    @classmethod
    def of(cls, group: FrozenGroup) -> FrozenDecision:
        """Put a frozen group on record."""
        reason = group.reasons[0]
        return cls(
            name=group.name,
            n_channels=group.n_channels,
            members=tuple(sorted({member.name for member in group.members})),
            kind=reason.kind,
            detail=reason.detail,
            operator=reason.operator,
            module=reason.module,
            source=reason.source,
        )


def make_rationale(
    groups: CouplingGroups,
    scores: ChannelScores,
    drop: Mapping[str, IntArray],
    held_by: Mapping[str, str],
    further: Mapping[str, Cost] | None = None,
) -> tuple[GroupRationale, ...]:
    """Put on record why each group loses the channels it loses.

    Args:
        groups: The model's coupling groups.
        scores: What the choice was made by.
        drop: ``{group name: channel numbers that go}``.
        held_by: ``{group name: the safety limit that holds it}``.
        further: Costs beside parameters and multiply-adds whose savings are told.
    """
    models: dict[str, Cost] = {
        "params": CostModel.of_params(groups),
        "macs": CostModel.of_macs(groups),
        **(further or {}),
    }
    kept = {g.name: g.n_channels - len(drop.get(g.name, ())) for g in groups}
    counts = np.array([kept[group.name] for group in groups], dtype=np.int64)
    costs = {name: model.value(counts) for name, model in models.items()}
    originals = {name: model.value() for name, model in models.items()}
    rationale = []
    for position, group in enumerate(groups):
        dropped = np.asarray(drop.get(group.name, ()), dtype=np.int64)
        without = counts.copy()
        without[position] = group.n_channels
        savings = tuple(
            Saving(name, model.value(without) - costs[name], originals[name])
            for name, model in models.items()
        )
        rationale.append(
            _group_rationale(group.name, scores, dropped, savings, held_by.get(group.name, ""))
        )
    return tuple(rationale)


def _group_rationale(
    name: str,
    scores: ChannelScores,
    dropped: IntArray,
    savings: tuple[Saving, ...],
    held_by: str,
) -> GroupRationale:
    own = scores[name]
    total = own.total.numpy()
    goes = np.zeros(len(total), dtype=np.bool_)
    goes[dropped] = True
    # Scores below zero, of what is redundant, are nothing to lose.
    shares = tuple(
        TaskShare(task, float(row[goes].sum()), float(row.sum()))
        for task, row in zip(scores.tasks, own.per_task.clamp_min(0).numpy(), strict=True)
    )
    penalty = np.zeros(len(total)) if own.conflict is None else own.conflict.numpy()
    return GroupRationale(
        group=name,
        criterion=scores.criterion,
        n_dropped=len(dropped),
        shares=shares,
        conflict=(float(penalty[goes].sum()), float(penalty.sum())),
        highest_dropped=float(total[goes].max()) if goes.any() else None,
        lowest_kept=float(total[~goes].min()),
        savings=savings,
        held_by=held_by,
        n_free=len(np.intersect1d(dropped, scores.free.get(name, ()))),
    )
