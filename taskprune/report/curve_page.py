"""A frontier as a page, and as a part of the page of a run: the curves, drawn without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from taskprune.report.curve_picture import Curves
from taskprune.report.pages import template
from taskprune.version import __version__

WIDTH, HEIGHT = 280, 180
"""Of a panel, in units of its own."""

LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 26
"""Its margins, for the numbers at its axes."""


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a curve: where it is drawn, and what it says."""

    x: float
    y: float
    says: str


@dataclass(frozen=True, slots=True)
class Panel:
    """The curve of one task.

    Attributes:
        task: Its name.
        dots: The points, the original first.
        base: Height of the original's metric.
        band: Height to which it may sink; ``None`` where nobody said.
        top: The largest number of the vertical axis.
        bottom: The smallest.
        least: What is left at the right end, in %.
    """

    task: str
    dots: tuple[Dot, ...]
    base: float
    band: float | None
    top: str
    bottom: str
    least: str


def panels(curves: Curves) -> tuple[Panel, ...]:
    """Return where to draw what; measurements that are no numbers are left out."""
    return tuple(_panel(task, curves) for task in curves.metrics)


def _panel(task: str, curves: Curves) -> Panel:
    before, after = curves.metrics[task]
    tolerance = curves.tolerances.get(task)
    found = [
        (left, value)
        for left, value in zip((100.0, *curves.left), (before, *after), strict=True)
        if math.isfinite(value)
    ]
    lowest = before if tolerance is None else before - tolerance
    levels = [lowest, before, *(value for _, value in found)]
    levels = [value for value in levels if math.isfinite(value)] or [0.0]
    low, high, least = min(levels), max(levels), min((100.0, *curves.left))

    def x(left: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (100 - left) / ((100 - least) or 1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / ((high - low) or 1)

    return Panel(
        task=task,
        dots=tuple(
            Dot(x(left), y(value), f"{left:.3g} % left: {value:.4g}") for left, value in found
        ),
        base=y(before) if math.isfinite(before) else y(high),
        band=None if tolerance is None else y(lowest),
        top=f"{high:.4g}",
        bottom=f"{low:.4g}",
        least=f"{least:.3g} %",
    )


def frontier_page(
    curves: Curves,
    *,
    model: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    missing: Sequence[str],
) -> str:
    """Return a frontier as one HTML page: the curves, and a row a model.

    Args:
        curves: What each size costs every task.
        model: What the model is called.
        headings: Of the columns; empty where a column belongs to the one before.
        rows: Cells of the original, then of each model.
        missing: Sentences on budgets without a model.
    """
    return template("frontier.html.jinja").render(
        model=model,
        version=__version__,
        curves=curves,
        panels=panels(curves),
        headings=headings,
        rows=rows,
        missing=missing,
    )
