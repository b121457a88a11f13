"""The multi-task networks that criteria are compared on, each with its data and its tasks."""

from __future__ import annotations

import argparse
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
from taskprune.driving.data import BDD100K, Cached, RoadScenes, loader, standard_augment
from taskprune.driving.data.sample import DrivingSample
from taskprune.driving.nets import FEATURE_MODULES, build_net
from taskprune.driving.tasks import driving_tasks
from taskprune.driving.tasks import forward as driving_forward
from taskprune.driving.teacher import TEACHER_SIZE, fit_teacher, load_teacher
from taskprune.driving.training import TrainSettings, train
from taskprune.restore import evaluating, flushed_denormals, preserved_rng

CALIBRATION_IMAGES = 64
HELD_OUT_IMAGES = 128
VALIDATION_SEED, HELD_OUT_SEED = 3, 4
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
        held_out: ``(seed) -> batches`` to choose weights by: not trained on, not judged on.
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
    held_out: Callable[[int], Iterable[DrivingBatch]]
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
        held_out=lambda _seed: loader(
            Cached(RoadScenes(HELD_OUT_IMAGES, seed=HELD_OUT_SEED)),
            batch_size=8,
            shuffle=False,
            seed=0,
        ),
        keep=(0.85, 0.7),
        steps=40,
    )


def driving_n_on(data: Path) -> Subject:
    """The same network fine-tuned on a data set in BDD100K's layout; a seed draws calibration."""

    def teacher(_seed: int) -> nn.Module:
        return fit_teacher(data, out=TEACHERS / f"driving_n_{data.name}")

    return driving_on(data, f"driving n, {data.name}", teacher, TEACHER_SIZE)


def driving_on(
    data: Path, name: str, teacher: Callable[[int], nn.Module], size: tuple[int, int]
) -> Subject:
    """A three-task network trained on a data set in BDD100K's layout.

    A seed shuffles the training images: the first are for calibration, the next are held out, and
    training goes through all that are not held out.
    """

    def parts(seed: int) -> tuple[Subset[DrivingSample], ...]:
        images = BDD100K(data, "train", size=size)
        n = len(images)
        drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
        first = min(CALIBRATION_IMAGES, n // 3)
        last = first + min(HELD_OUT_IMAGES, n // 3)
        chosen = drawn[:first], drawn[first:last], drawn[:first] + drawn[last:]
        return tuple(Subset(images, indices) for indices in chosen)

    def validation(n: int) -> Iterable[DrivingBatch]:
        images = BDD100K(data, "val", size=size)
        return loader(
            Subset(images, range(min(n, len(images)))), batch_size=8, shuffle=False, seed=0
        )

    return replace(
        driving_n(),
        name=name,
        teacher=teacher,
        calibration=lambda seed: loader(parts(seed)[0], batch_size=8, shuffle=False, seed=seed),
        held_out=lambda seed: loader(parts(seed)[1], batch_size=8, shuffle=False, seed=seed),
        training=lambda seed, _steps: loader(
            parts(seed)[2], batch_size=8, shuffle=True, seed=seed, augment=standard_augment()
        ),
        validation=validation,
    )


def of_scale(scale: str, data: Path, args: argparse.Namespace) -> Subject:
    """A network of a scale on a data set: trained on it first, or read from a file."""
    name = f"driving {scale}, {data.name}"

    def teacher(_seed: int) -> nn.Module:
        if args.teacher is not None:
            return load_teacher(args.teacher)
        with preserved_rng():
            torch.manual_seed(0)
            net = build_net(scale).to(args.device)
        return train(
            net,
            BDD100K(data, "train", size=args.size),
            settings=TrainSettings(steps=args.teacher_steps),
            out=TEACHERS / f"driving_{scale}_{data.name}",
            augment=standard_augment(),
            resume=True,
        )

    return driving_on(data, name, teacher, args.size)


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
        held_out=lambda _seed: batches(HELD_OUT_IMAGES, HELD_OUT_SEED, "train"),
        keep=(0.7, 0.5),
        steps=100,
    )


def subjects(data: Path | None = None) -> dict[str, Subject]:
    """Return the subjects by name; with ``data``, the dense one on those images as well."""
    found = [driving_n(), dense()] + ([dense(data)] if data else [])
    return {subject.name: subject for subject in found}
