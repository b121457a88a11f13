"""``taskprune-driving fusion train | evaluate``: the camera-LiDAR net on the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from taskprune.driving import options
from taskprune.driving.evaluation import report
from taskprune.driving.fusion.frame import FusionBatch, FusionFrame
from taskprune.driving.fusion.grid import BevGrid
from taskprune.driving.fusion.kitti import KittiObjects
from taskprune.driving.fusion.net import FusionNet, build_fusion_net
from taskprune.driving.fusion.netfile import load_fusion_teacher
from taskprune.driving.fusion.recipe import (
    N_ENDLESS,
    RECIPE,
    fusion_kind,
    judge,
    two_sensor_scenes,
)
from taskprune.driving.fusion.scenes import SIZE, TwoSensorScenes
from taskprune.driving.fusion.sensors import Degradation
from taskprune.driving.options import EMBEDDED, N_VALIDATION
from taskprune.driving.training import train
from taskprune.files import make_folder_of
from taskprune.terminal import plain_errors

BATCH = 8

app = typer.Typer(help="The camera-LiDAR net.", no_args_is_help=True)

Data = Annotated[
    str, typer.Option(help=f"'{EMBEDDED}' scenes, or a root in KITTI's object layout.")
]


@app.command("train")
def train_command(  # noqa: PLR0913 - one argument an option
    out: options.Out,
    data: Data = EMBEDDED,
    scale: Annotated[str, typer.Option(help="Size of a fresh net: n or l.")] = "n",
    init: options.Init = None,
    steps: options.Steps = None,
    minutes: options.Minutes = None,
    batch_size: Annotated[int, typer.Option(help="Frames a step.")] = RECIPE.batch_size,
    lr: options.LearningRate = RECIPE.lr,
    workers: Annotated[int, typer.Option(help="Processes that prepare frames.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of weights, scenes and order.")] = 0,
    resume: options.Resume = False,
) -> None:
    """Train a net; without --steps and --minutes by the recipe of the bundled one."""
    with plain_errors():
        settings = replace(
            RECIPE,
            steps=RECIPE.steps if steps is None and minutes is None else steps,
            minutes=minutes,
            batch_size=batch_size,
            lr=lr,
            workers=workers,
            seed=seed,
        )
        torch.manual_seed(seed)
        net = _initial(init, scale)
        grid = net.config.grid
        training: Dataset[FusionFrame] = (
            two_sensor_scenes("training", N_ENDLESS, seed=seed, grid=grid)
            if data == EMBEDDED
            else KittiObjects(data, "train", size=SIZE)
        )
        train(
            net,
            training,
            settings=settings,
            out=out,
            kind=fusion_kind(grid),
            validation=_batches(_validation(data, "val", grid, Degradation()), grid),
            resume=resume,
            console=Console(),
        )


@app.command("evaluate")
def evaluate_command(
    weights: options.Weights = None,
    data: Data = EMBEDDED,
    split: options.Split = "val",
    camera: Annotated[float, typer.Option(help="How degraded the made-up camera is, 0 to 1.")] = 0,
    lidar: Annotated[float, typer.Option(help="How degraded the made-up LiDAR is.")] = 0,
    out: options.MetricsFile = None,
) -> None:
    """Measure a net on labelled frames that it was not trained on."""
    with plain_errors():
        if out is not None:
            make_folder_of(out, option="`--out`")
        net = load_fusion_teacher(weights)
        grid = net.config.grid
        frames = _validation(data, split, grid, Degradation(camera=camera, lidar=lidar))
        batches = _batches(frames, grid)
        title = f"{len(frames)} frames of {data}"
        report(lambda: judge(net, batches, grid=grid), title=title, out=out)


def _initial(init: str | None, scale: str) -> FusionNet:
    if init is None:
        return build_fusion_net(scale)
    return load_fusion_teacher(None if init == "teacher" else Path(init))


def _validation(
    data: str, split: str, grid: BevGrid, degradation: Degradation
) -> TwoSensorScenes | KittiObjects:
    if data == EMBEDDED:
        return two_sensor_scenes("validation", N_VALIDATION, grid=grid, degradation=degradation)
    return KittiObjects(data, split, size=SIZE)


def _batches(frames: Dataset[FusionFrame], grid: BevGrid) -> DataLoader[FusionBatch]:
    """Return batches in order, without drawing from torch's global generator."""
    return DataLoader(
        cast("Dataset[Any]", frames),
        batch_size=BATCH,
        collate_fn=fusion_kind(grid).collate,
        generator=torch.Generator(),
    )
