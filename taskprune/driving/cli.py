"""The command line: ``taskprune-driving train | evaluate | scenes | fusion train ...``."""

from __future__ import annotations

import math
from collections.abc import Sized
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from rich.console import Console
from torch.utils.data import Dataset

from taskprune.driving import options
from taskprune.driving.data import (
    BDD100K,
    Augment,
    RoadScenes,
    loader,
    standard_augment,
    write_bdd100k,
)
from taskprune.driving.data.sample import DrivingSample
from taskprune.driving.evaluation import evaluate, report
from taskprune.driving.fusion.commands import app as fusion_app
from taskprune.driving.nets import PanopticDrivingNet, build_net
from taskprune.driving.options import EMBEDDED, N_VALIDATION
from taskprune.driving.teacher import load_teacher
from taskprune.driving.training import TrainSettings, train
from taskprune.driving.training.team import launched_team
from taskprune.errors import InputError
from taskprune.files import make_folder, make_folder_of
from taskprune.terminal import plain_errors

N_EMBEDDED = 1_000_000
"""Scenes to train on: in practice no scene is seen twice."""
VALIDATION_SEED = 10_000
"""Scenes of this seed are never trained on."""

app = typer.Typer(
    help="Train, measure and feed the three-task driving net.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(fusion_app, name="fusion")

Data = Annotated[
    str, typer.Option(help=f"'{EMBEDDED}' scenes, or the root of data in BDD100K's layout.")
]
Size = Annotated[str, typer.Option(help="Width x height of the images, multiples of 32.")]


@app.command("train")
def train_command(  # noqa: PLR0913 - one argument an option
    out: options.Out,
    data: Data = EMBEDDED,
    scale: Annotated[str, typer.Option(help="Size of a fresh net: n, s or l.")] = "n",
    init: options.Init = None,
    size: Size = "320x192",
    steps: options.Steps = None,
    epochs: Annotated[float | None, typer.Option(help="Or in passes over the data.")] = None,
    minutes: options.Minutes = None,
    batch_size: Annotated[int, typer.Option(help="Images a step and process.")] = 8,
    lr: options.LearningRate = 1e-3,
    bfloat16: Annotated[bool, typer.Option(help="Convolutions in bfloat16.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that prepare images.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    resume: options.Resume = False,
) -> None:
    """Train a net; under ``torchrun`` with several processes."""
    with plain_errors(), launched_team() as team:
        dataset, validation, augment = _training_data(data, _parsed(size), seed=seed)
        if epochs is not None:
            if steps is not None:
                raise InputError("`--steps` and `--epochs` exclude each other. Found both.")
            n_images = len(cast(Sized, dataset))
            steps = max(1, math.ceil(epochs * n_images / (batch_size * team.size)))
        settings = TrainSettings(
            steps=steps,
            minutes=minutes,
            batch_size=batch_size,
            lr=lr,
            bfloat16=bfloat16,
            workers=workers,
            seed=seed,
        )
        torch.manual_seed(seed)
        train(
            _initial(init, scale),
            dataset,
            settings=settings,
            out=out,
            validation=loader(validation, batch_size=16, shuffle=False, seed=0),
            augment=augment,
            resume=resume,
            console=Console(),
        )


@app.command("evaluate")
def evaluate_command(
    weights: options.Weights = None,
    data: Data = EMBEDDED,
    split: options.Split = "val",
    size: Size = "320x192",
    out: options.MetricsFile = None,
) -> None:
    """Measure a net on labelled images that it was not trained on."""
    with plain_errors():
        if out is not None:
            make_folder_of(out, option="`--out`")
        dataset = (
            RoadScenes(N_VALIDATION, seed=VALIDATION_SEED, size=_parsed(size))
            if data == EMBEDDED
            else BDD100K(data, split, size=_parsed(size))
        )
        net = load_teacher(weights)
        batches = loader(dataset, batch_size=16, shuffle=False, seed=0)
        report(lambda: evaluate(net, batches), title=f"{len(dataset)} images of {data}", out=out)


@app.command("scenes")
def scenes_command(
    out: options.Out,
    n: Annotated[int, typer.Option("-n", help="Number of scenes.")] = 20,
    split: Annotated[str, typer.Option(help="Split to write them as.")] = "train",
    size: Size = "320x192",
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
) -> None:
    """Write embedded scenes with their labels, in BDD100K's layout."""
    with plain_errors():
        make_folder(out, option="`--out`")
        write_bdd100k(RoadScenes(n, seed=seed, size=_parsed(size)), out, split)
        Console().print(f"{n} scenes written to [bold]{out}[/]")


def _training_data(
    data: str, size: tuple[int, int], *, seed: int
) -> tuple[Dataset[DrivingSample], Dataset[DrivingSample], Augment | None]:
    """Return training data, validation data and augmentation (fresh scenes need none)."""
    if data == EMBEDDED:
        if seed == VALIDATION_SEED:
            raise InputError(f"`--seed {seed}` makes the validation scenes. Choose another.")
        return (
            RoadScenes(N_EMBEDDED, seed=seed, size=size),
            RoadScenes(N_VALIDATION, seed=VALIDATION_SEED, size=size),
            None,
        )
    return BDD100K(data, "train", size=size), BDD100K(data, "val", size=size), standard_augment()


def _initial(init: str | None, scale: str) -> PanopticDrivingNet:
    if init is None:
        return build_net(scale)
    return load_teacher(None if init == "teacher" else Path(init))


def _parsed(size: str) -> tuple[int, int]:
    width, separator, height = size.partition("x")
    if not (separator and width.isdecimal() and height.isdecimal()):
        raise InputError(f"`--size` must look like 320x192. Found {size!r}.")
    return int(width), int(height)


if __name__ == "__main__":
    app()
