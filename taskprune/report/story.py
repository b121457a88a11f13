"""What the page of a run begins with: what it came to, before any detail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskprune.compensation import LossReport
from taskprune.errors import InputError, short
from taskprune.importance.conflict_report import ConflictLine, ConflictReport
from taskprune.report.balance import weights_kept
from taskprune.report.record import REASONS, GroupLine, PruneReport, cost_lines, frozen_by_kind

HEAT_ROWS = 40
"""Groups in the map of where tasks fight, those where they fight most."""

HEAT_TASKS = 12
"""Tasks in it, those that fight most."""


@dataclass(frozen=True, slots=True)
class TaskStory:
    """What one task paid.

    Attributes:
        task: Its name.
        before: Its metric on the original; ``None`` where nothing was measured.
        after: The same after the last step that was not undone.
        tolerance: How much of it may be lost, if anybody said so.
        later: What the caller measured of other models, in the order of :attr:`Story.later`.
        loss: Its loss on the calibration data; ``None`` where nothing was re-weighted.
    """

    task: str
    before: float | None
    after: float | None
    tolerance: float | None
    later: tuple[float | None, ...]
    loss: LossReport | None


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """Channels that stay for one kind of reason."""

    reason: str
    n_groups: int
    n_channels: int | None
    example: str


@dataclass(frozen=True, slots=True)
class HeatRow:
    """A group, and how much each task fights in it, as a part of the group's importance."""

    line: ConflictLine
    cells: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Where tasks fight, by group and task.

    Attributes:
        tasks: The columns.
        rows: In the order of the model.
        most: The largest cell.
        n_left_out: Groups with conflict that are not shown.
        pairs: Pairs of tasks that have conflict in the whole model, most first.
    """

    tasks: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    most: float
    n_left_out: int
    pairs: tuple[tuple[tuple[str, str], float], ...]


@dataclass(frozen=True, slots=True)
class Story:
    """The first part of the page.

    Attributes:
        words: A few sentences.
        tasks: A line a task.
        later: Names of the models that were measured later, such as ``"distilled"``.
        left_alone: A line a reason.
        heat: ``None`` where the criterion has no conflict term, or nobody fights.
    """

    words: tuple[str, ...]
    tasks: tuple[TaskStory, ...]
    later: tuple[str, ...]
    left_alone: tuple[LeftAlone, ...]
    heat: HeatMap | None


def tell(report: PruneReport, measured: Mapping[str, Mapping[str, float]]) -> Story:
    """Say what a run came to.

    Args:
        report: Its figures.
        measured: ``{model: {task: metric}}`` of what was made of the result since; NaN where a
            task has no labels.

    Raises:
        InputError: `measured` is something else.
    """
    _check(measured)
    return Story(
        words=tuple(_words(report)),
        tasks=_tasks(report, measured),
        later=tuple(measured),
        left_alone=_left_alone(report),
        heat=_heat(report.conflict, report.groups) if report.conflict else None,
    )


def _check(measured: object) -> None:
    fits = isinstance(measured, Mapping) and all(
        isinstance(name, str)
        and isinstance(own, Mapping)
        and all(isinstance(value, int | float) for value in own.values())
        for name, own in measured.items()
    )
    if not fits:
        raise InputError(
            "`measured` must be metrics by model and task, such as {'distilled': {'lane': 0.77}}. "
            f"Found {short(measured)}."
        )


def _words(report: PruneReport) -> list[str]:
    left = [f"{line.left:.1%} of the {line.name}" for line in cost_lines(report)]
    smaller = [group for group in report.groups if group.n_kept < group.n_channels]
    words = [f"{_listed(left)} {'is' if len(left) == 1 else 'are'} left."] if left else []
    words.append(
        f"{len(smaller):,} of {len(report.groups):,} groups of channels shrank; "
        f"{len(report.frozen):,} more had to stay whole."
    )
    after = metrics_after(report)
    paid = {task: report.metrics[task] - after[task] for task in report.metrics}
    if paid:
        worst = max(paid, key=lambda task: paid[task])
        words.append(
            f"No task lost anything of its metric ({_listed([*paid])})."
            if paid[worst] <= 0
            else f"The task that lost most of its metric is {worst}: "
            f"{report.metrics[worst]:.4g} → {after[worst]:.4g}."
        )
    if heavier := weights_kept(report.balance):
        counts = [f"{task} counts {weight:.3g} times" for task, weight in heavier.items()]
        words.append(f"So that no task pays for another, {_listed(counts)}.")
    return words


def metrics_after(report: PruneReport) -> Mapping[str, float]:
    """Return what was measured after the last step that was not undone."""
    held = [step.metrics for step in report.steps if not step.undone]
    return held[-1] if held else report.metrics


def _tasks(
    report: PruneReport, measured: Mapping[str, Mapping[str, float]]
) -> tuple[TaskStory, ...]:
    losses = report.compensation.losses if report.compensation else {}
    after = metrics_after(report)
    later = [task for own in measured.values() for task in own]
    return tuple(
        TaskStory(
            task=task,
            before=report.metrics.get(task),
            after=after.get(task),
            tolerance=report.tolerances.get(task),
            later=tuple(_number(own.get(task)) for own in measured.values()),
            loss=losses.get(task),
        )
        for task in dict.fromkeys((*report.metrics, *losses, *later))
    )


def _number(value: float | None) -> float | None:
    """Return a measurement; one of a task without labels is none."""
    return None if value is None or math.isnan(value) else value


def _left_alone(report: PruneReport) -> tuple[LeftAlone, ...]:
    """Return what stays, what the code holds before inputs and outputs, which every model has."""
    by_kind = sorted(frozen_by_kind(report).items(), key=lambda item: item[0] == "interface")
    lines = [
        LeftAlone(
            REASONS.get(kind, kind),
            len(groups),
            sum(group.n_channels for group in groups),
            f"{groups[0].name}: {groups[0].detail}",
        )
        for kind, groups in by_kind
    ]
    if report.untraced:
        lines.append(
            LeftAlone(
                "parameters that no traced forward reads",
                len(report.untraced),
                None,
                report.untraced[0],
            )
        )
    return tuple(lines)


def _heat(conflict: ConflictReport, groups: Sequence[GroupLine]) -> HeatMap | None:
    """Return how much each task fights in each group: the sum over its pairs."""
    if not conflict.groups:
        return None
    share = dict.fromkeys((task for pair in conflict.pairs for task in pair), 0.0)
    for pair, of_pair in zip(conflict.pairs, conflict.shares, strict=True):
        for task in pair:
            share[task] += of_pair
    most = sorted(share, key=lambda task: -share[task])[:HEAT_TASKS]
    tasks = tuple(task for task in share if task in most)
    place = {group.name: number for number, group in enumerate(groups)}
    shown = sorted(conflict.groups[:HEAT_ROWS], key=lambda line: place.get(line.group, 0))
    pairs = [each for each in zip(conflict.pairs, conflict.shares, strict=True) if each[1] > 0]
    rows = tuple(
        HeatRow(
            line,
            tuple(
                sum(own for pair, own in zip(conflict.pairs, line.pairs, strict=True) if t in pair)
                for t in tasks
            ),
        )
        for line in shown
    )
    return HeatMap(
        tasks=tasks,
        rows=rows,
        most=max(cell for row in rows for cell in row.cells) or 1.0,
        n_left_out=len(conflict.groups) - len(rows),
        pairs=tuple(sorted(pairs, key=lambda pair: -pair[1])[:HEAT_ROWS]),
    )


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
