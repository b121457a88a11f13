"""Draw the mean AP of each criterion over how much it removed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DASHED = ("random", "magnitude", "Taylor")
ROWS = {"before": "before fine-tuning", "after": "after fine-tuning"}

Content = Mapping[str, Any]


def draw(content: Content, path: Path) -> None:
    """Write a panel per condition of the sensors, before and after fine-tuning, to a PNG file."""
    conditions = list(content["teacher"])
    drawn = [when for when in ROWS if all(row[when] for row in content["rows"])]
    figure = Figure(figsize=(11, 0.9 + 3.4 * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), len(conditions), sharex=True, sharey=True, squeeze=False)
    for line, when in zip(panels, drawn, strict=True):
        for axes, condition in zip(line, conditions, strict=True):
            _panel(axes, content, when, condition)
        line[0].set_ylabel(f"mean AP {ROWS[when]}")
    for axes, condition in zip(panels[0], conditions, strict=True):
        axes.set_title(condition, fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("parameters removed, %")
        axes.set_xticks(sorted({100 * row["ratio"] for row in content["rows"]}))
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, content: Content, when: str, condition: str) -> None:
    """Draw a line per criterion; what is shaded is the standard deviation over seeds."""
    whole = content["teacher"][condition]["AP"]
    axes.axhline(whole, color="black", linewidth=0.8, linestyle=":")
    names = list(dict.fromkeys(row["criterion"] for row in content["rows"]))
    for name, colour in zip(names, mpl.color_sequences["tab10"], strict=False):
        own = sorted(
            (row for row in content["rows"] if row["criterion"] == name),
            key=lambda row: float(row["ratio"]),
        )
        removed = [100 * row["ratio"] for row in own]
        mean, spread = zip(*(row[when][condition]["AP"] for row in own), strict=True)
        style = "--" if name in DASHED else "-"
        axes.plot(removed, mean, style, marker="o", markersize=3, color=colour, label=name)
        low = [m - (s or 0.0) for m, s in zip(mean, spread, strict=True)]
        high = [m + (s or 0.0) for m, s in zip(mean, spread, strict=True)]
        axes.fill_between(removed, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
