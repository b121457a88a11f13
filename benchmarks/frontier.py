"""How small can the bundled driving network get before a task pays for it, without any training?

    python benchmarks/frontier.py                # all curves, then the results file
    nice python benchmarks/frontier.py --importance output_change

Each curve is one call of ``taskprune.frontier``: 32 calibration scenes, budgets of multiply-adds,
every point compensated in one step under the default limits and judged on the same unseen scenes.
Points are kept in ``runs/frontier`` as they finish; a run that was stopped goes on. The picture and
the table of the pages are made of the results file by ``benchmarks/report.py``.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from protocol import record
from rich.console import Console
from subjects import driving_n

import taskprune
from taskprune import Budget, Frontier
from taskprune.restore import flushed_denormals

CRITERIA = ("task_change", "output_change", "task_taylor")
BUDGETS = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
BATCHES = 4
"""Of 8 calibration scenes."""

SEED = 0


def curve(importance: str, images: int, folder: Path) -> Frontier:
    """Measure one curve."""
    subject = driving_n()
    with flushed_denormals():
        return taskprune.frontier(
            subject.teacher(SEED),
            subject.tasks(),
            list(islice(subject.calibration(SEED), BATCHES)),
            validation=list(subject.validation(images)),
            budgets=[Budget(macs=part) for part in BUDGETS],
            forward=subject.forward,
            importance=importance,
            directory=folder / f"{importance}_{images}",
        )


def in_points(found: Frontier) -> dict[str, Any]:
    """Return what the pages show: sizes in shares of the original, metrics in points."""
    whole = found.original
    return {
        "original": {task: 100 * value for task, value in whole.metrics.items()},
        "points": [
            {
                "params left": point.params / whole.params,
                "macs left": point.macs / whole.macs,
                "metrics": {task: 100 * value for task, value in point.metrics.items()},
            }
            for point in found.points
        ],
        "missing": dict(found.missing),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--importance", nargs="+", default=["task_change", "output_change", "task_taylor"]
    )
    parser.add_argument("--images", type=int, default=64, help="unseen scenes to judge on")
    parser.add_argument("--folder", type=Path, default=Path("runs/frontier"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    curves = {}
    for importance in args.importance:
        found = curve(importance, args.images, args.folder)
        Console(width=140).print(importance, found)
        curves[importance] = in_points(found)
        settings = {"images": args.images, "calibration": 8 * BATCHES, "seed": SEED}
        record("frontier", {"settings": settings, "curves": curves})


if __name__ == "__main__":
    main()
