"""Which importance criterion hurts the tasks least? On the bundled network, equal budgets.

Every criterion scores the same trained teacher on the same calibration scenes, removes the same
fraction of the parameters under the same safety rules, and is judged on the same unseen scenes,
per task and on the worst task: right after pruning (no fine-tuning, no BatchNorm recalibration) and
after equal, short distillation. Torch-Pruning's own criteria score our groups through the adapter.

    python benchmarks/criteria.py [--ratios 0.327 0.5] [--seeds 0 1 2] [--steps 0]

Rows are averages over seeds of the calibration (and training) scenes; points are 100 × metric.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

import torch_pruning as tp
from protocol import record, show

import taskprune
from taskprune.driving.data import RoadScenes, loader, standard_augment
from taskprune.driving.evaluation import evaluate
from taskprune.driving.nets import FEATURE_MODULES
from taskprune.driving.tasks import driving_tasks, forward
from taskprune.driving.teacher import load_teacher
from taskprune.importance import (
    CosineConflict,
    Importance,
    TaskTaylorImportance,
    TorchPruningImportance,
    importance_by_name,
)

HEADLINE = {"detection": "map50", "drivable": "miou", "lane": "iou"}
VALIDATION_SEED = 3


def criteria() -> dict[str, Importance]:
    """Return the compared criteria by the name of their row."""
    return {
        "random": importance_by_name("random"),
        "magnitude": importance_by_name("magnitude"),
        "Taylor, summed loss": importance_by_name("taylor"),
        "task Taylor (no conflict term)": TaskTaylorImportance(conflict_weight=0.0),
        "task Taylor − effect conflict": TaskTaylorImportance(),
        "task Taylor − cosine conflict": TaskTaylorImportance(conflict=CosineConflict()),
        "CosPrune": importance_by_name("cosprune"),
        "Torch-Pruning GroupTaylor": TorchPruningImportance(tp.importance.GroupTaylorImportance()),
        "Torch-Pruning GroupMagnitude": TorchPruningImportance(
            tp.importance.GroupMagnitudeImportance()
        ),
    }


def points(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {task: 100 * metrics[task][name] for task, name in HEADLINE.items()}


def run(name: str, ratio: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Prune with one criterion and return points lost per task, before and after distillation."""
    teacher = load_teacher()
    tasks = driving_tasks()
    validation = loader(
        RoadScenes(args.images, seed=VALIDATION_SEED), batch_size=8, shuffle=False, seed=0
    )
    calibration = loader(RoadScenes(128, seed=1000 + seed), batch_size=8, shuffle=False, seed=seed)
    reference = points(evaluate(teacher, validation))
    result = taskprune.prune(
        teacher, tasks, ratio, data=calibration, forward=forward, importance=criteria()[name]
    )
    lost = {"before": points(evaluate(result.model, validation))}
    if args.steps:
        training = loader(
            RoadScenes(8 * args.steps, seed=2000 + seed),
            batch_size=8,
            shuffle=True,
            seed=seed,
            augment=standard_augment(),
        )
        student = taskprune.distill(
            result.model,
            teacher=teacher,
            tasks=tasks,
            data=training,
            plan=result.plan,
            taps=FEATURE_MODULES,
            forward=forward,
            settings=taskprune.DistillSettings(steps=args.steps, seed=seed),
        )
        lost["after"] = points(evaluate(student, validation))
    row: dict[str, Any] = {"macs removed %": 100 * result.report.removed("macs")}
    for when, values in lost.items():
        changes = {task: values[task] - reference[task] for task in HEADLINE}
        row |= {f"{task} {when}": change for task, change in changes.items()}
        row[f"worst {when}"] = min(changes.values())
    return row


def averaged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    mean: dict[str, Any] = {key: statistics.fmean(row[key] for row in rows) for key in rows[0]}
    worst = [key for key in mean if key.startswith("worst")]
    for key in worst:
        mean[f"{key} ±"] = statistics.stdev([r[key] for r in rows]) if len(rows) > 1 else None
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.327, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=0, help="distillation steps; 0: none")
    parser.add_argument("--images", type=int, default=160, help="unseen scenes to judge on")
    args = parser.parse_args()
    rows = []
    for ratio in args.ratios:
        of_ratio = [
            {"criterion": name, "ratio": ratio}
            | averaged([run(name, ratio, seed, args) for seed in args.seeds])
            for name in criteria()
        ]
        show(f"Points lost at −{ratio:.1%} parameters", of_ratio)
        rows += of_ratio
    suffix = f"_distilled_{args.steps}" if args.steps else ""
    settings = {"seeds": args.seeds, "images": args.images, "steps": args.steps}
    record(f"criteria{suffix}", {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
