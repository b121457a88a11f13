"""Draw how time grows: a panel a family, a line a stage, the peers dashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

PEERS = {
    "torch-pruning": "Torch-Pruning (groups, rank, cut)",
    "torch-kirigami": "torch-kirigami (groups)",
}


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Write seconds over parameters, or over tasks, both logarithmic, to a PNG file."""
    points: Sequence[Mapping[str, Any]] = content["points"]
    families = list(dict.fromkeys(row["family"] for row in content["rows"]))
    colours = mpl.color_sequences["tab10"]
    figure = Figure(figsize=(3.2 * len(families), 3.8), layout="constrained")
    panels = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for axes, family in zip(panels, families, strict=True):
        axis = "tasks" if family == "tasks" else "parameters"
        own = [p for p in points if p["family"] == family and p["library"] == "taskprune"]
        own = sorted((p for p in own if "stages" in p), key=lambda p: p[axis])
        for colour, stage in zip(colours, own[0]["stages"], strict=False):
            xs, ys = [p[axis] for p in own], [p["stages"][stage] for p in own]
            axes.plot(xs, ys, marker="o", markersize=3, color=colour, label=stage)
        for style, (peer, label) in zip(("--", ":"), PEERS.items(), strict=True):
            found = [p for p in points if p["family"] == family and p["library"] == peer]
            found = sorted((p for p in found if "seconds" in p), key=lambda p: p[axis])
            if found:
                xs, ys = [p[axis] for p in found], [p["seconds"] for p in found]
                axes.plot(xs, ys, linestyle=style, color="black", label=label)
        axes.set_xscale("log", base=2 if axis == "tasks" else 10)
        axes.set_yscale("log")
        axes.set_title(family, fontsize=10)
        axes.set_xlabel(axis, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("processor seconds", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
