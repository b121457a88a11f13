"""Draw how much of the multiply-adds that went comes back as time: by runtime, and by stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MARKERS = "os^D"


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Write a PNG file: time gone over multiply-adds gone, in percent."""
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _by_runtime(left, content["rows"])
    _by_stage(right, content["stages"])
    for axes in (left, right):
        axes.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle=":")
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xlabel("multiply-adds removed, %", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7.5, frameon=False, loc="upper left")
        axes.set_xlim(0, 90)
        axes.set_ylim(-12, 90)
    left.set_ylabel("time removed, %", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _by_runtime(axes: Axes, rows: list[dict[str, Any]]) -> None:
    axes.set_title("whole networks, one image, one thread", fontsize=10)
    shown = [r for r in rows if (r["batch"], r["threads"], r["device"]) == (1, 1, "cpu")]
    runtimes = list(dict.fromkeys(r["runtime"] for r in shown))
    for colour, runtime in zip(mpl.color_sequences["tab10"], runtimes, strict=False):
        for marker, net in zip(MARKERS, dict.fromkeys(r["net"] for r in shown), strict=False):
            own = [
                r
                for r in shown
                if (r["net"], r["runtime"]) == (net, runtime) and r["model"] != "original"
            ]
            axes.scatter(
                [100 * (1 - r["MACs left"]) for r in own],
                [100 * (1 - 1 / r["times faster"]) for r in own],
                color=colour,
                marker=marker,
                s=28,
                label=f"{net}, {runtime}",
            )


def _by_stage(axes: Axes, stages: list[dict[str, Any]]) -> None:
    axes.set_title("stages of the n net, eager, a mark a student", fontsize=10)
    cell = next((cell for cell in stages if cell["net"] == "n"), None)
    if cell is None:
        return
    macs, ms = cell["macs"], cell["ms"]
    for colour, stage in zip(mpl.color_sequences["Set1"], macs["original"], strict=False):
        for marker, student in zip(MARKERS, [m for m in macs if m != "original"], strict=False):
            axes.scatter(
                100 * (1 - macs[student][stage] / macs["original"][stage]),
                100 * (1 - ms[student][stage] / ms["original"][stage]),
                color=colour,
                marker=marker,
                s=28,
                label=stage if marker == MARKERS[0] else None,
            )
