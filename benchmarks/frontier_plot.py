"""Draw what each size costs every task, a panel a task and a line a criterion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

LOWEST = -12
"""The lowest change that is shown; the table has all."""


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Write the change in points over multiply-adds left to a PNG file."""
    curves = content["curves"]
    tasks = list(next(iter(curves.values()))["original"])
    colours = mpl.color_sequences["tab10"]
    figure = Figure(figsize=(3.4 * len(tasks), 3.3), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        axes.axhspan(-1, 0, color="tab:green", alpha=0.12, lw=0)
        for colour, (importance, curve) in zip(colours, curves.items(), strict=False):
            left = [100 * point["macs left"] for point in curve["points"]]
            lost = [point["metrics"][task] - curve["original"][task] for point in curve["points"]]
            axes.plot(
                [100, *left],
                [0, *lost],
                marker="o",
                markersize=4,
                color=colour,
                label=importance if task == tasks[0] else None,
            )
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("multiply-adds left, %", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.invert_xaxis()
        axes.spines[["top", "right"]].set_visible(False)
    bottom = panels[0].get_ylim()[0]
    panels[0].set_ylim(bottom=max(bottom, LOWEST))
    panels[0].set_ylabel("change, points", fontsize=9)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
