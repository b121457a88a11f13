"""What :func:`taskprune.frontier` returns: a curve, and the smallest model on it that holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import nn

from taskprune.calling.tolerances import BrokenTolerance, broken_among
from taskprune.errors import InputError, ToleranceError, short
from taskprune.plan.plan import PruningPlan
from taskprune.promise import Promise
from taskprune.promise.promising import Samples, promised
from taskprune.report.curve_page import frontier_page
from taskprune.report.curve_picture import Curves, draw_curves
from taskprune.report.pages import in_a_frame, save_page
from taskprune.terminal import plain_text, stages, text_table

Size: TypeAlias = Literal["params", "macs", "latency_ms"]
"""What a frontier is ordered by."""


@dataclass(frozen=True, eq=False)
class FrontierPoint:
    """One model on a frontier.

    Attributes:
        budget: What was asked for, in words.
        params: Parameters.
        macs: Multiply-adds of one sample.
        metrics: By task, on the validation data.
        latency_ms: Milliseconds of one forward of the original and of this model, measured in turn;
            ``None`` where nobody asked.
        plan: What leads from the original to it; ``None`` for the original itself.
        load: Returns the model: a copy of one's own, from memory or read from :attr:`path`, with
            equal weights to the bit each time. Of the original: itself.
        path: Its checkpoint, if a directory was given.
    """

    budget: str
    params: int
    macs: int
    metrics: Mapping[str, float]
    latency_ms: tuple[float, float] | None
    plan: PruningPlan | None
    load: Callable[[], nn.Module] = field(repr=False)
    path: Path | None = None

    def size(self, of: Size) -> float:
        """Return a size to order points by; latency as a share of the original's, timed in turn."""
        if of == "latency_ms":
            return 1.0 if self.latency_ms is None else self.latency_ms[1] / self.latency_ms[0]
        return float(self.params if of == "params" else self.macs)

    def summary(self) -> dict[str, Any]:
        """Return everything but model and plan, for JSON."""
        return {
            "budget": self.budget,
            "params": self.params,
            "macs": self.macs,
            "metrics": dict(self.metrics),
            "latency_ms": None if self.latency_ms is None else list(self.latency_ms),
            "path": None if self.path is None else str(self.path),
        }


@dataclass(frozen=True, eq=False)
class Picked:
    """The smallest model on a frontier that holds.

    Attributes:
        model: The model; of one's own, to be trained on or saved.
        plan: What leads from the original to it.
        point: What was measured of it.
        tolerances: What every watched task may lose of its metric.
        lost: What each of them lost of it on the validation data.
        promise: What can be said of data like the held-out samples; ``None`` where there were none.
    """

    model: nn.Module
    plan: PruningPlan
    point: FrontierPoint
    tolerances: Mapping[str, float]
    lost: Mapping[str, float]
    promise: Promise | None = None

    def __str__(self) -> str:
        lines = [f"Picked {self.point.budget}: {self.plan.summary()}"]
        lines += [
            f"  {task}: lost {self.lost[task]:.4g}, may lose {tolerance:.4g}"
            for task, tolerance in self.tolerances.items()
        ]
        return "\n".join(lines if self.promise is None else [*lines, str(self.promise)])

    def __repr__(self) -> str:
        return f"Picked({self.point.budget}: {self.plan.summary()})"


@dataclass(frozen=True, eq=False)
class Frontier:
    """How small a model can get, and what each size costs every task; prints as a table.

    Attributes:
        original: What was measured of the original.
        points: The smaller models, from the largest to the smallest.
        size: What they are ordered by, and what "smallest" means: what all budgets bound.
        tolerances: What each task may lose of its metric, where the tasks say so.
        missing: Budgets without a point, and why: out of reach, or interrupted.
    """

    original: FrontierPoint
    points: tuple[FrontierPoint, ...]
    size: Size
    tolerances: Mapping[str, float]
    missing: Mapping[str, str]

    def pick(
        self,
        tolerance: Mapping[str, float] | None = None,
        *,
        samples: Samples | None = None,
        confidence: float = 0.95,
    ) -> Picked:
        """Return the smallest model in which no task loses more of its metric than it may.

        With held-out `samples`, the smallest of which that can be promised as well: "with 95 %
        confidence no task loses more than its tolerance on data like the samples". Models are
        tested from the largest on until one fails, which makes up for having picked among them; see
        :func:`taskprune.promise.promising.promised` for the method, and ``Promise.assumptions`` for
        what it takes. `tolerance` is to be set before anybody looks at results on the samples.

        Args:
            tolerance: What may be lost, by task, in the units of its metric: ``{"lane": 0.005}``.
                Tasks that are left out keep their ``Task.tolerance``, if they have one, and are
                not watched if they have none.
            samples: :class:`~taskprune.promise.PerSample` with a score of each sample,
                :class:`~taskprune.promise.OverImages` for a metric that is no mean over samples, or
                a list of both for different tasks.
            confidence: Of the promise.

        Raises:
            InputError: There is no tolerance, one of a task without a metric or without samples, or
                the samples are none.
            ToleranceError: No model holds, or none can be promised to; says which task of which
                model lost how much, or how many samples it would take.
        """
        tolerances = self._checked({**self.tolerances, **(tolerance or {})})
        holding = [point for point in self.points if not self._broken(point, tolerances)]
        if not holding:
            raise ToleranceError(self._none_holds(tolerances))
        if samples is None:
            return self._picked(holding[-1], tolerances, None)
        tested = self.points[: 1 + self.points.index(holding[-1])]
        with stages("Scoring held-out samples") as say:
            promises = promised(
                self.original.load(), _told(tested, say), samples, tolerances, confidence
            )
        sure = [each for each in zip(self.points, promises, strict=False) if each[0] in holding]
        if not sure:
            raise ToleranceError(self._none_holds(tolerances, among=len(promises)))
        point, promise = sure[-1]
        return self._picked(point, tolerances, promise)

    def _picked(
        self, point: FrontierPoint, tolerances: Mapping[str, float], promise: Promise | None
    ) -> Picked:
        assert point.plan is not None
        lost = {task: self.original.metrics[task] - point.metrics[task] for task in tolerances}
        return Picked(point.load(), point.plan, point, tolerances, lost, promise)

    def _checked(self, tolerances: Mapping[str, float]) -> dict[str, float]:
        metrics = self.original.metrics
        for task, tolerance in tolerances.items():
            if task not in metrics:
                raise InputError(
                    f"Expected tolerances of tasks with a metric: {_names(metrics)}. Found "
                    f"`{task}`."
                )
            is_number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
            if not is_number or not tolerance >= 0:
                raise InputError(
                    f"The tolerance of `{task}` must be at least 0. Found {short(tolerance)}."
                )
        if not tolerances:
            raise InputError(
                "Say what the tasks may lose of their metrics: tolerance={'"
                f"{next(iter(metrics))}': 0.01}}, or Task(tolerance=...). Found nothing."
            )
        return dict(tolerances)

    def _broken(
        self, point: FrontierPoint, tolerances: Mapping[str, float]
    ) -> tuple[BrokenTolerance, ...]:
        number = 1 + self.points.index(point)
        return broken_among(tolerances, self.original.metrics, point.metrics, step=number)

    def _none_holds(self, tolerances: Mapping[str, float], among: int | None = None) -> str:
        """Say what the point that comes nearest has lost, of all or of the first few."""

        def worst(broken: tuple[BrokenTolerance, ...]) -> float:
            return max(
                (each.before - each.after) / each.tolerance if each.tolerance else float("inf")
                for each in broken
            )

        points = self.points[:among]
        found = [(self._broken(point, tolerances), point) for point in points]
        broken, nearest = min(found, key=lambda each: (worst(each[0]), -each[1].size(self.size)))
        said = "; ".join(
            f"{each}, {each.before - each.after - each.tolerance:.4g} too much" for each in broken
        )
        return (
            f"None of the {len(points)} models on the frontier "
            f"{'that can be promised ' if among else ''}keeps to every tolerance. "
            f"Nearest comes the one of {nearest.budget}: {said}. Allow more, measure larger "
            "budgets, or train a point on (`taskprune.distill`)."
        )

    def table(self) -> Table:
        """Return a row a point: how large it is, how fast if measured, and each task's metric."""
        return text_table("What each size costs every task", *self._cells())

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        timed = any(point.latency_ms is not None for point in self.points)
        headings = ["budget", "parameters", "", "multiply-adds", ""]
        headings += (["latency", ""] if timed else []) + list(self.original.metrics)
        rows = []
        for point in (self.original, *self.points):
            row = [point.budget]
            for of in ("params", "macs"):
                before, now = getattr(self.original, of), getattr(point, of)
                row += [f"{now:,}", f"{now / before - 1:+.1%}" if before not in (0, now) else ""]
            if timed and point.latency_ms is not None:
                before, now = point.latency_ms
                row += [f"{now:.3g} ms", f"{before / now:.2f} × as fast"]
            elif timed:
                row += ["", ""]
            rows.append([*row, *(f"{value:.4g}" for value in point.metrics.values())])
        return headings, rows

    def _missing_words(self) -> list[str]:
        return [f"Not measured: {budget}. {reason}" for budget, reason in self.missing.items()]

    def plot(self, path: str | Path) -> None:
        """Draw each task's metric over the size that is left, and write the picture.

        Args:
            path: The file, in an existing folder; its suffix says the format, such as ``.png`` or
                ``.svg``.

        Raises:
            MissingDependencyError: Matplotlib is not installed.
            InputError: The file cannot be written.
        """
        draw_curves(Path(path), self.curves())

    def curves(self) -> Curves:
        """Return what each size costs every task, to be drawn."""
        whole = self.original.size(self.size)
        return Curves(
            left=[100 * point.size(self.size) / whole for point in self.points],
            of={"params": "parameters", "macs": "multiply-adds", "latency_ms": "latency"}[
                self.size
            ],
            metrics={
                task: (before, [point.metrics[task] for point in self.points])
                for task, before in self.original.metrics.items()
            },
            tolerances=self.tolerances,
        )

    def to_html(self) -> str:
        """Return the curves and a row a model as one HTML page without another file or script."""
        headings, rows = self._cells()
        return frontier_page(
            self.curves(),
            model=type(self.original.load()).__name__,
            headings=headings,
            rows=rows,
            missing=self._missing_words(),
        )

    def save_html(self, path: str | Path) -> None:
        """Write :meth:`to_html` to a file, which appears under its name when it is complete.

        Args:
            path: The file to write, in an existing folder.

        Raises:
            InputError: The folder is missing, or the file cannot be written.
        """
        save_page(self.to_html(), Path(path))

    def _repr_html_(self) -> str:
        return in_a_frame(self.to_html())

    def to_json(self) -> str:
        """Return all but models and plans as indented JSON."""
        found = {
            "size": self.size,
            "original": self.original.summary(),
            "points": [point.summary() for point in self.points],
            "missing": dict(self.missing),
        }
        return json.dumps(found, indent=2)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()
        yield from self._missing_words()

    def __str__(self) -> str:
        return plain_text(self, width=120)

    def __repr__(self) -> str:
        return f"Frontier({len(self.points)} points by {self.size})"


def _told(
    points: Sequence[FrontierPoint], say: Callable[[str], None]
) -> Iterator[Callable[[], nn.Module]]:
    """Yield what makes each model, and say which it is."""
    for point in points:
        say(f"the model of {point.budget}")
        yield point.load


def _names(mapping: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in mapping)
