"""The report of a pruning run as one HTML page: no other file, no script, no network.

The page stays readable, and of a size that a browser takes, for models of thousands of groups: it
shows those that lose most, says how many it leaves out, and where all of them are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from taskprune.cost import LatencyReport
from taskprune.importance.scores import BLIND
from taskprune.plan.explanation import reason_lines
from taskprune.plan.plan import PruningPlan
from taskprune.plan.rationale import FrozenDecision, GroupRationale
from taskprune.plan.tables import ranges_text
from taskprune.report.curve_page import panels
from taskprune.report.curve_picture import Curves
from taskprune.report.embedded_pictures import embedded
from taskprune.report.pages import template
from taskprune.report.record import (
    FROZEN_ROWS,
    REASONS,
    GroupLine,
    PruneReport,
    cost_lines,
    frozen_by_kind,
)
from taskprune.report.story import tell
from taskprune.version import __version__

GROUP_ROWS = 400
"""Groups shown, those that lose most channels."""

LIST_ROWS = 40
"""Rows of any other list."""

ROUNDS = 6
"""Rounds of solving that a group's reasons are told for, the last ones."""

TENSORS = 8
"""Parameters named for each group."""

RANGES_LENGTH = 300
"""Characters of the channel numbers of each group."""

N_COLOURS = 8
"""Colours of tasks in the style sheet; with more tasks they repeat."""

T = TypeVar("T")


@dataclass(frozen=True)
class Shown(Generic[T]):
    """The rows of a list that the page shows, and how many it leaves out."""

    rows: Sequence[T]
    n_left_out: int

    @classmethod
    def of(cls, rows: Sequence[T], most: int = LIST_ROWS) -> Shown[T]:
        """Show the first `most` of `rows`."""
        return cls(rows[:most], max(0, len(rows) - most))


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One prunable group and what there is to say about it.

    Attributes:
        line: What it loses.
        conflict: Conflict over importance; ``None`` where the criterion has no conflict term.
        held_by: The safety limit that held it, or empty.
        importance: Each task's share of the group's importance before anything went.
        dropped: Channel numbers that go.
        reasons: Why, in sentences.
        made_by: Parameters and buffers whose entries make the channels.
        read_by: Those whose entries read them.
    """

    line: GroupLine
    conflict: float | None
    held_by: str
    importance: tuple[tuple[str, float], ...]
    dropped: str
    reasons: tuple[str, ...]
    made_by: Shown[str]
    read_by: Shown[str]


@dataclass(frozen=True, slots=True)
class FrozenKind:
    """All groups that are frozen for one kind of reason."""

    kind: str
    meaning: str
    n_channels: int
    groups: Shown[FrozenDecision]


def report_page(
    report: PruneReport,
    plan: PruningPlan,
    *,
    model: str,
    measured: Mapping[str, Mapping[str, float]] | None = None,
    curves: Curves | None = None,
    pictures: Mapping[str, str | Path] | None = None,
    latency: Mapping[str, LatencyReport] | None = None,
) -> str:
    """Return a report as one HTML page.

    Args:
        report: The figures.
        plan: The plan they belong to; why it drops what it drops is part of the page.
        model: What the model is called.
        measured: ``{model: {task: metric}}`` of what was made of the result since, to stand beside
            its own.
        curves: What each size would cost every task, where that was measured.
        pictures: ``{caption: PNG or JPEG file}``, which become part of the page.
        latency: Times of models that were measured in turn, the original's first.

    Raises:
        InputError: `measured` or `pictures` are something else.
    """
    story = tell(report, measured or {})
    tasks = dict.fromkeys((*_tasks(report), *(line.task for line in story.tasks)))
    groups = _groups(report, plan)
    return template("report.html.jinja").render(
        report=report,
        model=model,
        version=__version__,
        story=story,
        curves=curves,
        panels=panels(curves) if curves else (),
        pictures=embedded(pictures or {}),
        latency=latency or {},
        costs=cost_lines(report),
        knows_tasks=tuple(line.task for line in report.tasks) != BLIND or len(_tasks(report)) > 1,
        colours={task: number % N_COLOURS for number, task in enumerate(tasks)},
        groups=groups,
        widest=max((row.line.n_channels for row in groups.rows), default=1),
        orders=_orders(groups.rows),
        limits=_limits(report),
        frozen=_frozen(report),
        untraced=Shown.of(report.untraced),
        replacements=Shown.of(report.replacements),
        notes=Shown.of(report.notes),
        outputs=Shown.of(report.verification.outputs) if report.verification else None,
        excluded=Shown.of(report.verification.excluded) if report.verification else None,
    )


def _orders(rows: Sequence[GroupRow]) -> dict[str, tuple[str, list[int]]]:
    """Return the orders that the groups can be read in: what each is called, and their places."""
    keys: dict[str, tuple[str, Callable[[GroupRow], float]]] = {
        "removed": ("most removed", lambda row: row.line.n_channels - row.line.n_kept),
        "share": ("largest share removed", lambda row: 1 - row.line.n_kept / row.line.n_channels),
        "widest": ("widest", lambda row: row.line.n_channels),
    }
    if any(row.conflict for row in rows):
        keys["fights"] = ("most conflict", lambda row: row.conflict or 0.0)
    found = {}
    for name, (words, key) in keys.items():
        order = sorted(range(len(rows)), key=lambda number: -key(rows[number]))
        places = [0] * len(rows)
        for place, number in enumerate(order):
            places[number] = place
        found[name] = (words, places)
    return found


def _tasks(report: PruneReport) -> tuple[str, ...]:
    """All tasks that the page names, in their declared order where it is known."""
    scored = [line.task for line in report.tasks]
    grouped = sorted({task for group in report.groups for task in group.tasks})
    return tuple(dict.fromkeys((*scored, *report.metrics, *grouped)))


def _groups(report: PruneReport, plan: PruningPlan) -> Shown[GroupRow]:
    """The groups that lose most channels, in the order of the model."""
    most = sorted(report.groups, key=lambda line: line.n_kept - line.n_channels)[:GROUP_ROWS]
    names = {line.name for line in most}
    rounds: defaultdict[str, list[GroupRationale]] = defaultdict(list)
    for why in plan.rationale:
        if why.group in names:
            rounds[why.group].append(why)
    decisions = {decision.name: decision for decision in plan.groups}
    held_by = {bound.group: bound.limit for bound in report.limits}
    fights = {line.group: line.share for line in report.conflict.groups} if report.conflict else {}
    rows = []
    for line in report.groups:
        if line.name not in names:
            continue
        decision, whys = decisions[line.name], rounds[line.name]
        rows.append(
            GroupRow(
                line=line,
                conflict=fights.get(line.name, 0.0) if report.conflict else None,
                held_by=held_by.get(line.name, ""),
                importance=_importance(whys),
                dropped=_shortened(ranges_text(decision.drop)),
                reasons=tuple(_reasons(whys)),
                made_by=Shown.of(decision.made_by, TENSORS),
                read_by=Shown.of(decision.read_by, TENSORS),
            )
        )
    return Shown(rows, len(report.groups) - len(rows))


def _importance(rounds: Sequence[GroupRationale]) -> tuple[tuple[str, float], ...]:
    shares = rounds[0].shares if rounds else ()
    # A sum below zero belongs to a task that would be better off without the group.
    own = {share.task: max(share.total, 0.0) for share in shares}
    total = sum(own.values())
    if len(own) < 2 or total <= 0:
        return ()
    return tuple((task, value / total) for task, value in own.items())


def _reasons(rounds: Sequence[GroupRationale]) -> Iterable[str]:
    earlier = max(0, len(rounds) - ROUNDS)
    if earlier:
        yield f"{earlier} earlier rounds are in the plan"
    for number, why in enumerate(rounds[earlier:], earlier + 1):
        lead = f"round {number}: " if len(rounds) > 1 else ""
        yield from (f"{lead}{line}" for line in reason_lines(why))


def _shortened(ranges: str) -> str:
    if len(ranges) <= RANGES_LENGTH:
        return ranges
    return f"{ranges[:RANGES_LENGTH].rpartition(' ')[0]} …"


def _limits(report: PruneReport) -> dict[str, int]:
    """How many groups each safety limit holds."""
    counts: defaultdict[str, int] = defaultdict(int)
    for bound in report.limits:
        counts[bound.limit] += 1
    return dict(counts)


def _frozen(report: PruneReport) -> list[FrozenKind]:
    """Frozen groups by reason; inputs and outputs of the model, which every model has, last."""
    by_kind = sorted(frozen_by_kind(report).items(), key=lambda item: item[0] == "interface")
    return [
        FrozenKind(
            kind=kind,
            meaning=REASONS.get(kind, kind),
            n_channels=sum(group.n_channels for group in groups),
            groups=Shown.of(groups, FROZEN_ROWS),
        )
        for kind, groups in by_kind
    ]
