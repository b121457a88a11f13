"""Draw what each way of fine-tuning brings back of what pruning took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

AIM = 80
LOWEST, HIGHEST = -25, 150
"""What is shown, in %; a bar that leaves the picture still has its number."""


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write bars per task and arm, mean over seeds with standard deviation, to a PNG file."""
    arms = [row for row in rows if row["recovered"]]
    tasks = [t for t in arms[0]["recovered"] if arms[0]["recovered"][t][0] is not None]
    usual = min(row["steps"] for row in arms)
    width = 0.8 / len(arms)
    colours = mpl.color_sequences["tab10"]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(arms):
        places = [i + (number - (len(arms) - 1) / 2) * width for i in range(len(tasks))]
        values = [row["recovered"][task] for task in tasks]
        axes.bar(
            places,
            [mean for mean, _ in values],
            width * 0.92,
            yerr=[spread or 0.0 for _, spread in values],
            capsize=2,
            color=colours[number],
            label=row["arm"] + (f", {row['steps']} steps" if row["steps"] != usual else ""),
        )
        for place, (mean, spread) in zip(places, values, strict=True):
            top = max(0.0, mean + (spread or 0.0))
            axes.annotate(
                f"{mean:.0f}",
                (place, min(top, HIGHEST - 10)),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(100, color="black", linewidth=0.8, linestyle=":")
    axes.axhline(AIM, color="grey", linewidth=0.8, linestyle="--")
    axes.set_ylim(LOWEST, HIGHEST)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylabel("recovered share of the drop, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
