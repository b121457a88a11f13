"""The bundled trained net, and how it becomes a teacher for other images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from taskprune.driving.bundled import load_or_bundled
from taskprune.driving.data import BDD100K, Cached, loader, standard_augment
from taskprune.driving.evaluation import evaluate
from taskprune.driving.netfile import load_net, save_net
from taskprune.driving.nets import PanopticDrivingNet
from taskprune.driving.training import TrainSettings, train
from taskprune.errors import InputError
from taskprune.files import parse_json, read_bytes, write_text

TEACHER_SIZE = (320, 192)
"""Width and height of the images that the bundled teacher was trained on."""

FINE_TUNING = TrainSettings(
    steps=300, batch_size=8, lr=5e-4, average_decay=0.99, validate_every=10_000
)
"""Recipe of `fit_teacher`: the same everywhere, about five minutes on two cores."""


def load_teacher(weights: Path | str | None = None) -> PanopticDrivingNet:
    """Return a trained net in eval mode.

    Args:
        weights: File that ``taskprune-driving train`` or `fit_teacher` wrote. Default: the bundled
            scale-``n`` net, trained on embedded scenes of 320 x 192 pixels.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else.
        MissingDependencyError: The bundled net is asked for, and was not installed.
    """
    return load_or_bundled(load_net, weights, "teacher_n.safetensors")


def fit_teacher(
    root: Path | str,
    *,
    out: Path,
    settings: TrainSettings = FINE_TUNING,
    size: tuple[int, int] = TEACHER_SIZE,
    console: Console | None = None,
) -> PanopticDrivingNet:
    """Fine-tune the bundled teacher on a data set in BDD100K's layout; return it in eval mode.

    Trains on the augmented ``train`` split. Writes ``teacher.safetensors`` and ``teacher.json``
    (data, recipe, metrics on the ``val`` split) into `out`, and the run into ``out/fitting``. When
    both files are there, made from the same data with the same recipe, they are used instead.

    Args:
        root: Folder that holds ``images`` and ``labels``.
        out: Folder to write to.
        settings: The recipe.
        size: Width and height the images are brought to, multiples of 32.
        console: Where to show progress.

    Raises:
        DataError: Images or labels are missing or damaged.
        MissingDependencyError: The bundled teacher was not installed.
        TrainingError: Training diverged.
    """
    weights, card = out / "teacher.safetensors", out / "teacher.json"
    origin = {
        "data": str(Path(root).resolve()),
        "size": list(size),
        "settings": {k: v for k, v in vars(settings).items() if k != "workers"},
        "torch": torch.__version__,
    }
    if weights.exists() and _says(card, origin):
        return load_net(weights)
    teacher = load_teacher()
    # With more loading processes each would keep its own copy of the images.
    training = Cached(BDD100K(root, "train", size=size))
    validation = loader(BDD100K(root, "val", size=size), batch_size=8, shuffle=False, seed=0)
    net = train(
        teacher,
        training,
        settings=settings,
        out=out / "fitting",
        validation=None,
        augment=standard_augment(),
        console=console,
    )
    save_net(net, weights)
    record = {**origin, "metrics": evaluate(net, validation)}
    write_text(card, json.dumps(record, indent=2))
    return net


def _says(card: Path, origin: dict[str, Any]) -> bool:
    try:
        record = parse_json(read_bytes(card))
    except (OSError, InputError):
        return False
    return isinstance(record, dict) and {name: record.get(name) for name in origin} == origin
