"""The multi-task networks that criteria are compared on, each with its data and its tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from dense_net import BATCH_SIZE, dense_tasks, scenes, trained
from torch import nn
from torch.utils.data import Subset

from taskprune import Task
from taskprune.calling import Forward
from taskprune.driving.batch import DrivingBatch
from taskprune.driving.data import BDD100K, RoadScenes, loader, standard_augment
from taskprune.driving.nets import FEATURE_MODULES
from taskprune.driving.tasks import driving_tasks
from taskprune.driving.tasks import forward as driving_forward
from taskprune.driving.teacher import TEACHER_SIZE, fit_teacher, load_teacher
from taskprune.restore import evaluating, flushed_denormals

CALIBRATION_IMAGES = 64
VALIDATION_SEED = 3
TEACHERS = Path(__file__).parents[1] / "runs" / "benchmarks"


def image_forward(model: nn.Module, batch: DrivingBatch) -> Any:
    return model(batch.images)


@dataclass(frozen=True)
class Subject:
    """One trained network and what it takes to prune, judge and fine-tune it.

    Attributes:
        name: For the tables.
        teacher: ``(seed) -> trained network``.
        tasks: Makes the tasks, each with a metric of its own.
        forward: ``(model, batch) -> outputs``.
        taps: Modules whose features are distilled.
        calibration: ``(seed) -> batches``.
        validation: ``(n images) -> batches``, never seen in training.
        training: ``(seed, steps) -> batches``.
        keep: Fractions of the multiply-adds to prune to: one that hurts, one that hurts much.
        steps: Of fine-tuning; as many as bring a random choice of channels back part of the way.
    """

    name: str
    teacher: Callable[[int], nn.Module]
    tasks: Callable[[], dict[str, Task]]
    forward: Forward
    taps: tuple[str, ...] | None
    calibration: Callable[[int], Iterable[DrivingBatch]]
    validation: Callable[[int], Iterable[DrivingBatch]]
    training: Callable[[int, int], Iterable[DrivingBatch]]
    keep: tuple[float, ...]
    steps: int

    def judge(self, model: nn.Module, n_images: int) -> dict[str, float]:
        """Return every task's metric on unseen images, in points."""
        tasks = copy.deepcopy(self.tasks())
        with evaluating(model), torch.no_grad(), flushed_denormals():
            for batch in self.validation(n_images):
                outputs = model(batch.images)
                for task in tasks.values():
                    assert task.metric is not None
                    task.metric.update(outputs, batch)
        return {name: 100 * task.metric.compute() for name, task in tasks.items() if task.metric}


def driving_n() -> Subject:
    """The bundled three-task network at scale n, on generated scenes."""
    return Subject(
        name="driving n",
        teacher=lambda _seed: load_teacher(),
        tasks=driving_tasks,
        forward=driving_forward,
        taps=tuple(FEATURE_MODULES),
        calibration=lambda seed: loader(
            RoadScenes(CALIBRATION_IMAGES, seed=1000 + seed),
            batch_size=8,
            shuffle=False,
            seed=seed,
        ),
        validation=lambda n: loader(
            RoadScenes(n, seed=VALIDATION_SEED), batch_size=8, shuffle=False, seed=0
        ),
        training=lambda seed, steps: loader(
            RoadScenes(8 * steps, seed=2000 + seed),
            batch_size=8,
            shuffle=True,
            seed=seed,
            augment=standard_augment(),
        ),
        keep=(0.85, 0.7),
        steps=40,
    )


def driving_n_on(data: Path) -> Subject:
    """The same network fine-tuned on a data set in BDD100K's layout; a seed draws calibration."""

    def calibration(seed: int) -> Iterable[DrivingBatch]:
        images = BDD100K(data, "train", size=TEACHER_SIZE)
        drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        chosen = Subset(images, drawn[:CALIBRATION_IMAGES].tolist())
        return loader(chosen, batch_size=8, shuffle=False, seed=seed)

    def validation(n: int) -> Iterable[DrivingBatch]:
        images = BDD100K(data, "val", size=TEACHER_SIZE)
        return loader(
            Subset(images, range(min(n, len(images)))), batch_size=8, shuffle=False, seed=0
        )

    return replace(
        driving_n(),
        name=f"driving n, {data.name}",
        teacher=lambda _seed: fit_teacher(data, out=TEACHERS / f"driving_n_{data.name}"),
        calibration=calibration,
        validation=validation,
    )


def dense(data: Path | None = None) -> Subject:
    """A residual network with three dense heads, on generated scenes or a data set."""

    def batches(n: int, seed: int, split: str, *, shuffle: bool = False) -> Iterable[DrivingBatch]:
        return loader(
            scenes(n, seed=seed, data=data, split=split),
            batch_size=BATCH_SIZE if shuffle else 8,
            shuffle=shuffle,
            seed=seed,
            augment=standard_augment() if shuffle else None,
        )

    return Subject(
        name="dense" if data is None else f"dense, {data.name}",
        teacher=lambda seed: trained(seed, data=data),
        tasks=dense_tasks,
        forward=image_forward,
        taps=None,
        calibration=lambda seed: batches(CALIBRATION_IMAGES, 1000 + seed, "train"),
        validation=lambda n: batches(n, VALIDATION_SEED, "val"),
        training=lambda seed, steps: batches(
            BATCH_SIZE * steps, 2000 + seed, "train", shuffle=True
        ),
        keep=(0.7, 0.5),
        steps=100,
    )


def subjects(data: Path | None = None) -> dict[str, Subject]:
    """Return the subjects by name; with ``data``, the dense one on those images as well."""
    found = [driving_n(), dense()] + ([dense(data)] if data else [])
    return {subject.name: subject for subject in found}
