"""Draw what the worst task has lost over the time that was spent, a panel a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

LOWEST = -30
"""The lowest change that is shown; the table has the others."""


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Write the worst task's change in points over seconds, one line a run, to a PNG file."""
    rows, tolerance = content["rows"], content["settings"]["tolerance"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    ways = list(dict.fromkeys(row["way"] for row in rows))
    colours = dict(zip(ways, mpl.color_sequences["tab10"], strict=False))
    figure = Figure(figsize=(max(7.2, 4.6 * len(networks)), 3.8), layout="constrained")
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    named: set[str] = set()
    for axes, network in zip(panels, networks, strict=True):
        axes.axhspan(-tolerance, 0, color="tab:green", alpha=0.12, lw=0)
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        for row in (row for row in rows if row["network"] == network):
            for curve in row["curves"]:
                axes.plot(
                    [seconds for seconds, _ in curve],
                    [worst for _, worst in curve],
                    marker="o",
                    markersize=4.5,
                    linewidth=1.3,
                    color=colours[row["way"]],
                    label=None if row["way"] in named else row["way"],
                )
                named.add(row["way"])
        axes.set_xscale("log")
        axes.set_title(network, fontsize=10)
        axes.set_xlabel("processor seconds since the trained network", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(bottom=LOWEST)
    panels[0].set_ylabel("worst task, change in points", fontsize=9)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
