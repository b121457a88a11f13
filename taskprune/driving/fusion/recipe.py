"""How the fusion net is trained, on which scenes, and how it is judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import torch
from rich.console import Console
from torch import nn

from taskprune.driving.evaluation import SummaryMetric, measure
from taskprune.driving.fusion.frame import FusionBatch, collate_frames
from taskprune.driving.fusion.grid import BevGrid
from taskprune.driving.fusion.metrics import BoxMetric, GroundMetric
from taskprune.driving.fusion.net import FusionNet, build_fusion_net
from taskprune.driving.fusion.netfile import save_fusion_net
from taskprune.driving.fusion.scenes import TwoSensorScenes
from taskprune.driving.fusion.sensors import Degradation
from taskprune.driving.fusion.tasks import fusion_forward, fusion_tasks
from taskprune.driving.training import NetKind, TrainSettings, train
from taskprune.restore import preserved_rng

GRID = BevGrid()
"""The ``n`` net's."""

N_POINTS = 4096
"""Points a frame."""

N_ENDLESS = 1_000_000
"""Scenes to train on: in practice none is seen twice."""

STEPS = 600
"""Minutes on one CPU core for the ``n`` net."""

RECIPE = TrainSettings(
    steps=STEPS,
    batch_size=4,
    lr=2e-3,
    average_decay=0.99,
    workers=0,
    validate_every=10_000,
)
"""How."""

Part = Literal["training", "calibration", "tuning", "validation"]
"""What scenes are for; those of different parts or seeds never overlap."""


def fusion_kind(grid: BevGrid, *, n_points: int = N_POINTS) -> NetKind:
    """Return what :func:`taskprune.driving.training.train` needs to know of fusion nets."""
    return NetKind(
        tasks=fusion_tasks(grid),
        forward=fusion_forward,
        collate=partial(collate_frames, n_points=n_points, grid=grid),
        evaluate=partial(judge, grid=grid),
        save=save_fusion_net,
    )


def two_sensor_scenes(
    part: Part,
    n: int,
    *,
    seed: int = 0,
    grid: BevGrid = GRID,
    degradation: Degradation | None = None,
) -> TwoSensorScenes:
    """Return made-up scenes for one purpose.

    Args:
        part: What they are for.
        n: How many.
        seed: Which ones.
        grid: Where the drivable ground is labelled.
        degradation: How bad the sensors are; the scenes stay the same.

    Raises:
        InputError: A number is out of range.
    """
    parts = get_args(Part)
    number = len(parts) * seed + parts.index(part)
    return TwoSensorScenes(n, seed=number, grid=grid, degradation=degradation)


def scene_batches(
    part: Part,
    n: int,
    *,
    batch_size: int = 8,
    seed: int = 0,
    degradation: Degradation | None = None,
) -> Sequence[FusionBatch]:
    """Return `n` batches of made-up scenes, see :func:`two_sensor_scenes`."""
    scenes = two_sensor_scenes(part, n * batch_size, seed=seed, degradation=degradation)
    return [
        collate_frames(
            [scenes[i] for i in range(first, first + batch_size)],
            n_points=N_POINTS,
            grid=scenes.grid,
        )
        for first in range(0, len(scenes), batch_size)
    ]


def train_fusion_net(
    *,
    seed: int = 0,
    steps: int = STEPS,
    scale: str = "n",
    out: Path | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> FusionNet:
    """Train a fresh net on made-up scenes by :data:`RECIPE` and return it in eval mode.

    Weights and scenes follow from `seed` alone; torch's random state is given back.

    Args:
        seed: Of weights and scenes.
        steps: Length of the run.
        scale: Size of the net, see :func:`~taskprune.driving.fusion.build_fusion_net`.
        out: Folder for checkpoints and log. Default: none are kept.
        resume: Go on with the run in `out` if there is one.
        console: Where to show progress.

    Raises:
        InputError: A setting is out of range.
        TrainingError: Training diverged.
        CheckpointError: The run in `out` cannot be resumed.
    """
    settings = replace(RECIPE, seed=seed, steps=steps)
    with preserved_rng():
        torch.manual_seed(seed)
        net = build_fusion_net(scale)
    grid = net.config.grid
    scenes = two_sensor_scenes("training", N_ENDLESS, seed=seed, grid=grid)
    with TemporaryDirectory() as unkept:
        return train(
            net,
            scenes,
            settings=settings,
            out=out or Path(unkept),
            kind=fusion_kind(grid),
            resume=resume,
            console=console,
        )


def judge(
    net: nn.Module, batches: Iterable[FusionBatch], *, grid: BevGrid = GRID
) -> dict[str, dict[str, float]]:
    """Return how good a net is on labelled batches; its modes are given back.

    Returns:
        ``{"detection": {"map_bev", "map_3d", "Car_bev_moderate", ...}, "drivable": {"iou"}}``, each
        in 0..1: AP at KITTI's thresholds from above and in space, moderate objects; NaN without
        labels.

    Raises:
        MissingDependencyError: The extra ``driving`` is not installed.
    """
    metrics: dict[str, SummaryMetric] = {"detection": BoxMetric(grid), "drivable": GroundMetric()}
    found = measure(net, batches, metrics, forward=fusion_forward)
    shown = {n: v for n, v in found["detection"].items() if not n.endswith(("_easy", "_hard"))}
    return {**found, "detection": shown}
