"""The main job from end to end: prune and distil a trained driving net, and show what it cost.

Everything goes through taskprune's front door, like any customer's model would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from taskprune import (
    Budget,
    DistillSettings,
    PruneResult,
    Safety,
    Task,
    apply_plan,
    distill,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from taskprune.calling import flatten_outputs
from taskprune.cost import LatencyReport, measure_latency
from taskprune.distillation import Validation
from taskprune.driving.batch import DrivingBatch
from taskprune.driving.data import BDD100K, Cached, RoadScenes, loader, standard_augment
from taskprune.driving.evaluation import evaluate
from taskprune.driving.nets import PanopticDrivingNet
from taskprune.driving.pictures import side_by_side
from taskprune.driving.tasks import driving_tasks, forward
from taskprune.driving.teacher import TEACHER_SIZE, fit_teacher, load_teacher
from taskprune.errors import InputError, MissingDependencyError
from taskprune.files import make_folder, write_text
from taskprune.restore import evaluating
from taskprune.terminal import text_table

Metrics = Mapping[str, Mapping[str, float]]
"""``{task: {metric: value}}``."""

HEADLINES = {"detection": ("map50", "recall"), "drivable": ("miou",), "lane": ("iou", "accuracy")}
"""What the table shows of each task: the paper's columns."""

BATCH_SIZE = 8
ROUND_TO = 16
"""Kept channels are multiples of this where possible: kernels work on blocks of channels."""

LATENCY_REPEATS = 100
LEARNING_RATE = 1e-4
N_CALIBRATION = 128
N_HELD_OUT = 128
N_VALIDATION = 160
N_TRAINING = 4096
"""Numbers of images: scores, metrics, distillation (of embedded scenes)."""

EXTRA = ("accelerate", "faster_coco_eval", "matplotlib", "PIL")
"""Packages of the extra ``driving`` that the demo needs, sooner or later."""


@dataclass(frozen=True)
class DemoSettings:
    """What ``taskprune demo`` can be told.

    Attributes:
        data: Root of a data set in BDD100K's layout; ``None`` for embedded scenes.
        teacher: Weights of a trained net of any scale. Default: the bundled ones; with `data`, a
            copy of them fine-tuned on its train split (kept in `out` for the next run).
        ratio: Fraction of the parameters to remove, at least.
        macs: Fraction of the multiply-adds to keep, at most: fewer parameters alone are not faster.
        steps: Distillation steps.
        out: Folder for pictures, report and checkpoint.
        seed: Seed of scenes and data order.

    Raises:
        InputError: A number is out of range.
    """

    data: Path | None = None
    teacher: Path | None = None
    ratio: float = 0.327
    macs: float = 0.8
    steps: int = 40
    out: Path = Path("runs/demo")
    seed: int = 0

    def __post_init__(self) -> None:
        self.budget()
        for name, least in (("steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(
                    f"`{name}` must be a whole number of at least {least}. Found "
                    f"{getattr(self, name)}."
                )

    def budget(self) -> Budget:
        """Return what is to be left."""
        return replace(Budget.from_ratio(self.ratio), macs=self.macs)


@dataclass(frozen=True, eq=False)
class DemoData:
    """The uses of data: what is held out or validated on, is seen nowhere else.

    Attributes:
        calibration: To score and compensate on.
        training: To distil on.
        held_out: To choose the best weights of distillation by.
        validation: To report.
    """

    calibration: DataLoader[DrivingBatch]
    training: DataLoader[DrivingBatch]
    held_out: DataLoader[DrivingBatch]
    validation: DataLoader[DrivingBatch]


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demo measured.

    Attributes:
        metrics: ``{"teacher" | "sliced" | "pruned" | "distilled": metrics}``: before, with the
            weights that slicing leaves, with those that compensation gives, and at the end.
        prune: The result of :func:`taskprune.prune`; its model is the distilled student.
        latency: Of teacher and student, measured in turn, batch 1.
        checkpoint_error: Largest output difference of the reloaded checkpoint (0 expected).
    """

    metrics: Mapping[str, Metrics]
    prune: PruneResult
    latency: Mapping[str, LatencyReport]
    checkpoint_error: float


def run_demo(settings: DemoSettings, console: Console) -> DemoResult:
    """Run the job, show each step's result on `console` and write the files of `settings.out`.

    Raises:
        InputError: The folder cannot be made.
        DataError: The data set is missing or damaged.
        CheckpointError: The teacher's weights are missing or damaged.
        MissingDependencyError: The extra ``driving`` is not installed.
    """
    _check_installed()
    make_folder(settings.out, option="`--out`")
    torch.manual_seed(settings.seed)
    tasks = driving_tasks()
    data = _data(settings)
    teacher = _teacher(settings, console)

    console.rule("1 · the teacher")
    metrics = {"teacher": _measured(teacher, data, "teacher", console)}
    console.print(metric_table(metrics))

    console.rule(
        f"2 · prune {settings.ratio:.1%} of the parameters, {1 - settings.macs:.1%} of the "
        "multiply-adds"
    )
    result = prune(
        teacher,
        tasks,
        budget=settings.budget(),
        data=data.calibration,
        forward=forward,
        safety=Safety(round_to=ROUND_TO),
    )
    console.print(result.report)
    sliced = apply_plan(teacher, result.plan, verify=False)
    metrics["sliced"] = _measured(sliced, data, "pruned net as sliced", console)
    metrics["pruned"] = _measured(result.model, data, "pruned net", console)
    console.print(metric_table(metrics))

    console.rule("3 · distil")
    student = distill(
        result.model,
        teacher=teacher,
        tasks=tasks,
        data=data.training,
        plan=result.plan,
        forward=forward,
        settings=_gentle(settings, data, tasks),
    )
    metrics["distilled"] = _measured(student, data, "distilled net", console)

    sample = next(iter(data.validation))
    with console.status("Timing teacher and student in turn …"), _one_thread():
        latency = measure_latency(
            {"teacher": teacher, "student": student}, (sample.images[:1],), repeats=LATENCY_REPEATS
        )
    console.rule("4 · what it cost, and what it brought")
    console.print(in_words(result, latency, metrics), highlight=False)
    console.print(metric_table(metrics))
    console.print(size_table(result, latency))
    save_checkpoint(settings.out / "student.safetensors", student, result.plan)
    original = PanopticDrivingNet(teacher.config, num_classes=teacher.detection.num_classes)
    reloaded = load_checkpoint(settings.out / "student.safetensors", original)
    checkpoint_error = _difference(student, reloaded, sample)
    picture = settings.out / "predictions.png"
    side_by_side({"teacher": teacher, "student": student}, sample, picture)
    demo = DemoResult(metrics, result, latency, checkpoint_error)
    write_text(settings.out / "report.json", to_json(demo, settings))
    result.save_html(
        settings.out / "report.html",
        measured=_headlines(metrics),
        pictures={"Unseen images: labels, teacher and distilled student": picture},
        latency=latency,
    )
    console.print(
        f"Written to [bold]{escape(str(settings.out))}[/]: predictions.png, report.json, "
        "report.html (what was pruned and why, for a browser), student.safetensors. The student "
        "read back from it differs from the one in memory by "
        f"{checkpoint_error:.1e}."
    )
    return demo


def _headlines(metrics: Mapping[str, Metrics]) -> dict[str, dict[str, float]]:
    """Return the first headline metric of each task, in points."""
    return {
        model: {task: 100 * own[task][names[0]] for task, names in HEADLINES.items()}
        for model, own in metrics.items()
    }


def _check_installed() -> None:
    """Refuse now what would fail after minutes."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"The demo needs {', '.join(missing)}. Install what is missing with "
            '`pip install "taskprune[driving]"`.'
        )


def _measured(model: nn.Module, data: DemoData, name: str, console: Console) -> Metrics:
    with console.status(f"Measuring the {name} on unseen images …"):
        return evaluate(model, data.validation)


def _teacher(settings: DemoSettings, console: Console) -> PanopticDrivingNet:
    if settings.teacher is not None or settings.data is None:
        return load_teacher(settings.teacher)
    console.print(
        f"The bundled teacher is fine-tuned on [bold]{escape(str(settings.data))}[/] first, which "
        f"takes some minutes; the next run finds it in [bold]{escape(str(settings.out))}[/]."
    )
    return fit_teacher(settings.data, out=settings.out, console=console)


def _data(settings: DemoSettings) -> DemoData:
    def batches(images: Dataset[Any], *, trains: bool = False) -> DataLoader[DrivingBatch]:
        augment = standard_augment() if trains else None
        return loader(
            images, batch_size=BATCH_SIZE, shuffle=trains, seed=settings.seed, augment=augment
        )

    if settings.data is None:
        return DemoData(
            training=batches(RoadScenes(N_TRAINING, seed=settings.seed + 1), trains=True),
            calibration=batches(RoadScenes(N_CALIBRATION, seed=settings.seed + 2)),
            validation=batches(RoadScenes(N_VALIDATION, seed=settings.seed + 3)),
            held_out=batches(RoadScenes(N_HELD_OUT, seed=settings.seed + 4)),
        )
    images = Cached(BDD100K(settings.data, "train", size=TEACHER_SIZE))
    every = max(4, len(images) // N_HELD_OUT)
    training = Subset(images, [n for n in range(len(images)) if n % every])
    step = max(1, len(training) // N_CALIBRATION)
    return DemoData(
        training=batches(training, trains=True),
        calibration=batches(Subset(training, range(0, len(training), step))),
        validation=batches(BDD100K(settings.data, "val", size=TEACHER_SIZE)),
        held_out=batches(Subset(images, range(0, len(images), every))),
    )


def _gentle(settings: DemoSettings, data: DemoData, tasks: Mapping[str, Task]) -> DistillSettings:
    """Return how to train on what compensation left: in small steps, and never to end below it."""
    return DistillSettings(
        steps=settings.steps,
        seed=settings.seed,
        learning_rate=LEARNING_RATE,
        frozen_batchnorm=True,
        keep_best=Validation(
            tasks, data.held_out, every=max(1, settings.steps // 2), forward=forward
        ),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Time on one core: at these sizes, threads wait for each other more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _difference(first: nn.Module, second: nn.Module, sample: DrivingBatch) -> float:
    """Return the largest absolute difference of any output, in eval mode."""
    with evaluating(first), evaluating(second):
        a, b = flatten_outputs(first(sample.images)), flatten_outputs(second(sample.images))
    return max(float((a[path] - b[path]).abs().max()) for path in a)


def _changes(metrics: Mapping[str, Metrics], model: str) -> Iterator[tuple[str, str, float, float]]:
    """Yield each headline metric with its value and its change, in points."""
    for task, names in HEADLINES.items():
        for name in names:
            value, start = (100 * metrics[each][task][name] for each in (model, "teacher"))
            yield task, name, value, value - start


def metric_table(metrics: Mapping[str, Metrics]) -> Table:
    """A row per model, the headline metrics of each task as columns, changes in points."""

    def cell(model: str, value: float, change: float) -> str:
        if math.isnan(value):
            return "no labels"
        return f"{value:.1f}" if model == "teacher" else f"{value:.1f} {change:+.1f}"

    return text_table(
        "Unseen images, in points" + (", and the change" if len(metrics) > 1 else ""),
        ("", *(f"{task}\n{name}" for task, names in HEADLINES.items() for name in names)),
        ((model, *(cell(model, *of[2:]) for of in _changes(metrics, model))) for model in metrics),
    )


def size_table(result: PruneResult, latency: Mapping[str, LatencyReport]) -> Table:
    """Parameters, multiply-adds and measured latency of teacher and student."""
    costs = [result.report.costs[name] for name in ("params", "macs")]
    return text_table(
        "Size and speed (batch 1, one thread, both in turn)",
        ("", "parameters", "multiply-adds", "latency, median (quartiles)"),
        (
            (model, *(f"{cost[row]:,}" for cost in costs), str(latency[model]))
            for row, model in enumerate(("teacher", "student"))
        ),
    )


def in_words(
    result: PruneResult, latency: Mapping[str, LatencyReport], metrics: Mapping[str, Metrics]
) -> str:
    """Say the result in two sentences."""
    speedup = latency["teacher"].median_ms / latency["student"].median_ms

    def worst(model: str) -> str:
        known = (of for of in _changes(metrics, model) if not math.isnan(of[2]))
        task, name, _, change = min(known, key=lambda of: of[3])
        return f"{change:+.1f} points ({task} {name})"

    return (
        f"[bold]{result.report.removed('params'):.1%} fewer parameters, "
        f"{result.report.removed('macs'):.1%} fewer multiply-adds, {speedup:.2f} times as fast. "
        f"The worst change of any task: {worst('pruned')} before any training, "
        f"{worst('distilled')} after distillation.[/]"
    )


def to_json(demo: DemoResult, settings: DemoSettings) -> str:
    """Return everything the demo measured as indented JSON."""
    report = json.loads(demo.prune.report.to_json())
    return json.dumps(
        {
            "settings": {
                "data": settings.data.name if settings.data else "embedded scenes",
                "ratio": settings.ratio,
                "macs": settings.macs,
                "steps": settings.steps,
                "seed": settings.seed,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            },
            "metrics": {
                model: {
                    # JSON has no NaN: tasks without labels have no value.
                    task: {k: None if math.isnan(v) else v for k, v in values.items()}
                    for task, values in metrics.items()
                }
                for model, metrics in demo.metrics.items()
            },
            "latency_ms": {name: asdict(report) for name, report in demo.latency.items()},
            "checkpoint_error": demo.checkpoint_error,
            "prune": report,
        },
        indent=2,
    )
