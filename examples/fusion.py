"""The bundled camera-LiDAR network, pruned by what its two sensors both say.

Run it with ``python examples/fusion.py``; it takes about a minute on one core. With
``--kitti ROOT`` (a folder in KITTI's object layout) it also reads real frames; the bundled network
has seen made-up scenes only, so expect it to find little there before you train it on such frames:
``taskprune-driving fusion train --data ROOT --init teacher --out DIR``.
"""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

import taskprune
from taskprune.cost import measure_params
from taskprune.driving.fusion import (
    BevGrid,
    FusionBatch,
    KittiObjects,
    collate_frames,
    fusion_forward,
    fusion_tasks,
    judge,
    load_fusion_teacher,
    scene_batches,
)
from taskprune.importance import AlterMomaImportance, Modality

SENSORS = (Modality("camera", "camera_branch"), Modality("lidar", "lidar_branch"))
RATIO = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kitti", type=Path, help="folder in KITTI's object layout")
    parser.add_argument("--quick", action="store_true", help="few scenes and steps")
    args = parser.parse_args()
    n_validation, n_calibration, steps = (1, 1, 2) if args.quick else (6, 4, 50)
    console = Console()
    teacher = load_fusion_teacher()
    tasks = fusion_tasks(teacher.config.grid)
    validation = {"made-up scenes": list(scene_batches("validation", n_validation, batch_size=4))}
    if args.kitti is not None:
        validation["KITTI frames"] = [kitti_frames(args.kitti, teacher.config.grid)]

    console.rule(f"AlterMOMA removes {RATIO:.0%} of the parameters")
    result = taskprune.prune(
        teacher,
        tasks,
        RATIO,
        data=list(scene_batches("calibration", n_calibration, batch_size=2)),
        forward=fusion_forward,
        importance=AlterMomaImportance(SENSORS, reactivation_steps=n_calibration),
    )
    console.print(result)
    console.print(what_each_part_lost(teacher, result.model))
    figures = {name: [quality(teacher, batches)] for name, batches in validation.items()}
    for name, batches in validation.items():
        figures[name].append(quality(result.model, batches))

    console.rule(f"{steps} steps of fine-tuning against the features of the original")
    student = taskprune.distill(
        result.model,
        teacher=teacher,
        tasks=tasks,
        data=list(scene_batches("tuning", steps, batch_size=4)),
        forward=fusion_forward,
        plan=result.plan,
        settings=taskprune.DistillSettings(steps=steps, learning_rate=3e-4, frozen_batchnorm=True),
    )
    for name, batches in validation.items():
        figures[name].append(quality(student, batches))
        table = Table("", "AP from above", "AP in space", "drivable IoU", title=name)
        for model, row in zip(("original", "pruned", "fine-tuned"), figures[name], strict=True):
            table.add_row(model, *row)
        console.print(table)


def kitti_frames(root: Path, grid: BevGrid) -> FusionBatch:
    frames = KittiObjects(root, "val", size=(320, 96))
    chosen = [frames[i] for i in range(min(8, len(frames)))]
    return collate_frames(chosen, n_points=8192, grid=grid)


def what_each_part_lost(before: nn.Module, after: nn.Module) -> Table:
    table = Table("part", "parameters", "after", "removed")
    for part in ("camera_branch", "lidar_branch", "camera_map", "fusion", "detection", "drivable"):
        n, left = (measure_params(model.get_submodule(part)) for model in (before, after))
        table.add_row(part, f"{n:,}", f"{left:,}", f"{1 - left / n:.0%}")
    return table


def quality(model: nn.Module, batches: Iterable[FusionBatch]) -> list[str]:
    found = judge(model, batches)
    values = (found["detection"]["map_bev"], found["detection"]["map_3d"], found["drivable"]["iou"])
    return ["no labels" if math.isnan(value) else f"{100 * value:.1f}" for value in values]


if __name__ == "__main__":
    main()
