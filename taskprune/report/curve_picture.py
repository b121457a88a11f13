"""A picture of what each size costs every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskprune.errors import InputError, MissingDependencyError
from taskprune.files.writing import replacing

COLUMNS = 3
"""Panels side by side."""


@dataclass(frozen=True, slots=True)
class Curves:
    """What each size costs every task.

    Attributes:
        left: What is left of a size at each point, in %.
        of: Of what, such as ``"parameters"``.
        metrics: Of the original, and at each point, by task.
        tolerances: What may be lost, for the tasks that are there.
    """

    left: Sequence[float]
    of: str
    metrics: Mapping[str, tuple[float, Sequence[float]]]
    tolerances: Mapping[str, float]


def draw_curves(path: Path, curves: Curves) -> None:
    """Draw a panel a task, its metric over what is left of a size, and write the picture.

    Args:
        path: The file; its suffix says the format.
        curves: What to draw; tolerances are shown as a shade.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
        InputError: The file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure  # no window, no global state
    except ImportError as error:
        raise MissingDependencyError(
            'A plot needs Matplotlib. Install it with `pip install "taskprune[plot]"`, or print '
            "the frontier: it is a table as well."
        ) from error
    metrics, tolerances = curves.metrics, curves.tolerances
    columns = min(COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    with rc_context({"svg.hashsalt": "taskprune"}):  # the same picture each time
        figure = Figure(figsize=(3.6 * columns, 0.3 + 2.9 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for panel in panels[len(metrics) :]:
            panel.set_visible(False)
        for axes, (task, (before, after)) in zip(panels, metrics.items(), strict=False):
            axes.axhline(before, color="black", linewidth=0.8, linestyle=":")
            if task in tolerances:
                axes.axhspan(before - tolerances[task], before, color="tab:green", alpha=0.12, lw=0)
            axes.plot(
                [100, *curves.left], [before, *after], color="tab:blue", marker="o", markersize=4
            )
            axes.set_title(task, fontsize=10)
            axes.set_xlabel(f"{curves.of} left, %", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.invert_xaxis()
            axes.spines[["top", "right"]].set_visible(False)
        suffix = path.suffix.removeprefix(".") or "png"
        try:
            with replacing(path) as temporary:
                figure.savefig(temporary, format=suffix, dpi=150)
        except (OSError, ValueError) as error:
            raise InputError(
                f"Expected the name of a picture to write, such as `frontier.png`, in an existing "
                f"folder. `{path}` could not be written: {error}."
            ) from error
