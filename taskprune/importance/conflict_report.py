"""Where tasks fight: the conflict in every layer and between every pair of tasks, as a record."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations

from rich.table import Table

from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError
from taskprune.importance.scores import ChannelScores
from taskprune.terminal import text_table

SHOWN = 10
"""How many groups the table shows."""


@dataclass(frozen=True, slots=True)
class ConflictLine:
    """Conflict in one group.

    Attributes:
        group: Its name.
        tasks: The tasks that share it.
        n_channels: How many channels it has.
        share: Conflict of all pairs over the summed importance of all tasks: 0 where nobody
            disagrees, at most 1 with effect conflict and the sum over tasks.
        pairs: The same of each pair, in the report's order.
        worst_channel: The channel with the most conflict.
    """

    group: str
    tasks: tuple[str, ...]
    n_channels: int
    share: float
    pairs: tuple[float, ...]
    worst_channel: int


@dataclass(frozen=True)
class ConflictReport:
    """Where tasks fight.

    Attributes:
        criterion: What scored.
        pairs: The pairs of tasks.
        shares: Conflict of each pair in the whole model over the summed importance.
        groups: A line for each group that has conflict, most first.
    """

    criterion: str
    pairs: tuple[tuple[str, str], ...]
    shares: tuple[float, ...]
    groups: tuple[ConflictLine, ...]

    def to_json(self) -> str:
        """Return the report as indented JSON."""
        return json.dumps(asdict(self), indent=2)

    def __rich__(self) -> Table:
        return conflict_table(self)


def conflict_report(groups: CouplingGroups, scores: ChannelScores) -> ConflictReport:
    """Say how much of each group's importance the tasks disagree about.

    Args:
        groups: The coupling groups.
        scores: Their scores, from a criterion with a conflict term and at least two tasks.

    Raises:
        InputError: The scores have no conflict term.
    """
    if not scores.knows_conflict:
        raise InputError(
            f"There is no conflict to report in scores by `{scores.criterion}` of "
            f"{len(scores.tasks)} task(s). Score two tasks or more with importance='task_change', "
            "or 'task_taylor' and a `conflict_weight` above 0."
        )
    pairs = tuple(combinations(scores.tasks, 2))
    sums = [0.0] * len(pairs)
    whole = 0.0
    lines: list[ConflictLine] = []
    for group in groups:
        penalties = scores[group.name].pair_conflict
        assert penalties is not None, "knows_conflict"
        importance = float(scores[group.name].per_task.sum())
        own = penalties.sum(dim=1).tolist()
        whole += importance
        sums = [total + more for total, more in zip(sums, own, strict=True)]
        if sum(own) > 0 and importance > 0:
            lines.append(
                ConflictLine(
                    group=group.name,
                    tasks=tuple(task for task in scores.tasks if task in group.tasks),
                    n_channels=group.n_channels,
                    share=sum(own) / importance,
                    pairs=tuple(value / importance for value in own),
                    worst_channel=int(penalties.sum(dim=0).argmax()),
                )
            )
    return ConflictReport(
        criterion=scores.criterion,
        pairs=pairs,
        shares=tuple(total / whole if whole > 0 else 0.0 for total in sums),
        groups=tuple(sorted(lines, key=lambda line: -line.share)),
    )


def conflict_table(report: ConflictReport) -> Table:
    """Return the groups with most conflict, and the whole model, as a table."""

    def shares(values: Iterable[float]) -> list[str]:
        return [f"{share:.1%}" for share in values]

    table = text_table(
        "Where tasks fight: conflict / importance",
        ("group", "channels", *(f"{one} × {other}" for one, other in report.pairs), "all"),
        (
            (line.group, str(line.n_channels), *shares((*line.pairs, line.share)))
            for line in report.groups[:SHOWN]
        ),
    )
    table.add_section()
    left = len(report.groups) - SHOWN
    name = f"whole model ({left} more groups)" if left > 0 else "whole model"
    table.add_row(name, "", *shares((*report.shares, sum(report.shares))))
    return table
