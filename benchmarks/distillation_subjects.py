"""The images that ways of fine-tuning are compared on, and the teacher of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset, Subset

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.data import BDD100K, Cached, RoadScenes, loader, standard_augment
from taskprune.driving.nets import PanopticDrivingNet
from taskprune.driving.teacher import TEACHER_SIZE, fit_teacher, load_teacher

RUNS = Path(__file__).parents[1] / "runs" / "benchmarks"
BATCH_SIZE = 8
N_CALIBRATION = 128
VALIDATION_SEED = 3

Batches = DataLoader[DrivingBatch]


@dataclass(frozen=True)
class Images:
    """One source of images.

    Attributes:
        name: For the tables.
        teacher: Makes the network trained on them.
        calibration: ``(seed) -> batches`` to score with.
        training: ``(seed, steps) -> batches``, augmented.
        validation: ``(n) -> batches`` that no training has seen.
        steps: How many of fine-tuning, 8 images each.
        longer: How many in a second, longer run of some.
    """

    name: str
    teacher: Callable[[], PanopticDrivingNet]
    calibration: Callable[[int], Batches]
    training: Callable[[int, int], Batches]
    validation: Callable[[int], Batches]
    steps: int
    longer: int | None = None


def scenes() -> Images:
    """Generated scenes, new ones at every step."""
    return Images(
        name="scenes",
        teacher=load_teacher,
        calibration=lambda seed: _in_order(RoadScenes(N_CALIBRATION, seed=1000 + seed)),
        # Kept in memory, so that only the first arm waits for them to be drawn.
        training=lambda seed, steps: _shuffled(
            Cached(RoadScenes(BATCH_SIZE * steps, seed=2000 + seed)), seed
        ),
        validation=lambda n: _in_order(Cached(RoadScenes(n, seed=VALIDATION_SEED))),
        steps=150,
    )


def data_set(root: Path) -> Images:
    """The images of a data set in BDD100K's layout, over and over, augmented anew each time."""
    train = Cached(BDD100K(root, "train", size=TEACHER_SIZE))
    held_out = Cached(BDD100K(root, "val", size=TEACHER_SIZE))

    def calibration(seed: int) -> Batches:
        stride = max(1, len(train) // N_CALIBRATION)
        return _in_order(Subset(train, range(seed % stride, len(train), stride)))

    return Images(
        name=root.name,
        teacher=lambda: fit_teacher(root, out=RUNS / f"teacher_{root.name}"),
        calibration=calibration,
        training=lambda seed, _steps: _shuffled(train, seed),
        validation=lambda n: _in_order(Subset(held_out, range(min(n, len(held_out))))),
        steps=100,
        longer=300,
    )


def image_sets(root: Path | None) -> list[Images]:
    """Return the generated scenes, and the data set if there is one."""
    return [scenes()] if root is None else [scenes(), data_set(root)]


def _in_order(images: Dataset[Any]) -> Batches:
    return loader(images, batch_size=BATCH_SIZE, shuffle=False, seed=0)


def _shuffled(images: Dataset[Any], seed: int) -> Batches:
    return loader(
        images, batch_size=BATCH_SIZE, shuffle=True, seed=seed, augment=standard_augment()
    )
