"""What is left of every task right after pruning, sliced and compensated, without any training?

    python benchmarks/compensation.py                      # all cells, then the table
    python benchmarks/compensation.py --networks "driving n" --seeds 0
    python benchmarks/compensation.py --device cuda --jobs 16
    python benchmarks/compensation.py --finished           # only the table
    TASKPRUNE_DATA=.../camvid3task python benchmarks/compensation.py   # on real images as well

Every row goes through the front door, ``taskprune.prune``, under the default limits, and is judged
on the same unseen scenes; nothing is fine-tuned. *Sliced* leaves the weights that stay as they
were; *compensated* re-weights what reads removed channels, *in steps* after each of as many as
``steps="auto"`` takes; *balanced* weighs tasks by what they lose of their metrics on held-out data;
*measured* corrects scores by what groups were measured to cost; *without labels* scores and
compensates by outputs alone. Where no criterion is named it is the default. Torch-Pruning's scores
the same groups, so that the comparison is about the score. A seed draws the calibration images and,
for "dense", another trained network.

Points are 100 x metric, lost against the unpruned network; "worst" is the largest loss among the
tasks. Cells are kept in ``benchmarks/results/cells/compensation.jsonl`` as they finish, with the
commit that measured them; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from cells import Cell, Cells
from modality_frames import calibration as fusion_calibration
from modality_frames import tuning as fusion_tuning
from modality_frames import validation as fusion_validation
from protocol import record, show
from rich.progress import track
from students import Lessons, Student, Way, healed, kept, lessons_of, pruned, recipe
from subjects import HELD_OUT_SEED, Subject, driving_n_on, subjects
from torch import nn, no_grad

from taskprune import Budget, Task
from taskprune.allocation import MeasuredDamage
from taskprune.calling import Forward
from taskprune.driving.fusion import (
    BoxMetric,
    GroundMetric,
    fusion_forward,
    fusion_tasks,
    load_fusion_teacher,
)
from taskprune.importance import TaskChangeImportance, TorchPruningImportance
from taskprune.restore import evaluating, flushed_denormals


@dataclass(frozen=True)
class Network:
    """One trained network and what it takes to prune and judge it.

    Attributes:
        teacher: ``(seed) -> trained network``.
        tasks: Makes the tasks.
        forward: ``(model, batch) -> outputs``.
        calibration: ``(seed) -> batches``.
        held_out: ``(seed) -> batches`` to weigh tasks by; neither pruned with nor judged on.
        judge: ``(model, images) -> {task: points}``.
        budgets: What to prune to, by the name of the row.
        distilling: Steps of training by budget; ways that distil are left out of the others.
        lessons: ``(seed, steps) -> what they are trained with``.
    """

    teacher: Callable[[int], nn.Module]
    tasks: Callable[[], dict[str, Task]]
    forward: Forward
    calibration: Callable[[int], Iterable[Any]]
    held_out: Callable[[int], Iterable[Any]]
    judge: Callable[[nn.Module, int], Mapping[str, float]]
    budgets: Mapping[str, Budget]
    distilling: Mapping[str, int]
    lessons: Callable[[int, int], Lessons]


WAYS: Mapping[str, Way] = {
    "sliced": Way("task_change", compensate=False),
    "compensated": Way("task_change", compensate=True),
    "balanced, compensated": Way("task_change", compensate=True, balanced=True),
    "balanced, compensated, distilled": Way(
        "task_change", compensate=True, balanced=True, distilled=True
    ),
    "outputs 0.1, balanced, compensated": Way(
        TaskChangeImportance(outputs=0.1), compensate=True, balanced=True
    ),
    "compensated, in steps": Way("task_change", compensate=True, steps="auto"),
    "compensated, in steps, distilled": Way(
        "task_change", compensate=True, steps="auto", distilled=True
    ),
    "detection ×4, compensated, in steps": Way(
        "task_change", compensate=True, steps="auto", weights={"detection": 4.0}
    ),
    "floor 0.1, compensated, in steps": Way(
        TaskChangeImportance(floor=0.1), compensate=True, steps="auto"
    ),
    "outputs 0.1, compensated, in steps": Way(
        TaskChangeImportance(outputs=0.1), compensate=True, steps="auto"
    ),
    "measured, compensated, in steps": Way(
        MeasuredDamage("task_change"), compensate=True, steps="auto"
    ),
    "task_taylor, sliced": Way("task_taylor", compensate=False),
    "task_taylor, compensated": Way("task_taylor", compensate=True),
    "task_taylor, compensated, in steps": Way("task_taylor", compensate=True, steps="auto"),
    "Torch-Pruning's score, sliced": Way(
        TorchPruningImportance(tp.importance.GroupTaylorImportance()), compensate=False
    ),
    "Torch-Pruning's score, sliced, distilled": Way(
        TorchPruningImportance(tp.importance.GroupTaylorImportance()),
        compensate=False,
        distilled=True,
    ),
    "Taylor, sliced": Way("taylor", compensate=False),
    "Taylor, compensated": Way("taylor", compensate=True),
    "Taylor, compensated, in steps": Way("taylor", compensate=True, steps="auto"),
    "output_change, compensated": Way("output_change", compensate=True),
    "output_change, compensated, in steps": Way("output_change", compensate=True, steps="auto"),
    "output_change measured, compensated, in steps": Way(
        MeasuredDamage("output_change"), compensate=True, steps="auto"
    ),
    "without labels, sliced": Way("output_change", compensate=False, labels=False),
    "without labels, compensated": Way("output_change", compensate=True, labels=False),
    "without labels, compensated, in steps": Way(
        "output_change", compensate=True, steps="auto", labels=False
    ),
}


ASKED: Mapping[tuple[str, str], float] = {
    ("driving n", "−32.7 % parameters"): -1.0,
    ("driving n", "85 % of the MACs"): -1.5,
    ("driving n", "70 % of the MACs"): -4.0,
    ("dense", "50 % of the MACs"): -3.0,
    ("dense", "30 % of the MACs"): -8.0,
    ("fusion", "−80 % parameters"): -3.9,
    ("fusion", "−90 % parameters"): -13.9,
}
"""Points that the worst task may lose before any training, on generated scenes."""

ASKED_TRAINED: Mapping[tuple[str, str], float] = {
    ("driving n", "60 % of the MACs"): -2.0,
    ("dense", "50 % of the MACs"): -0.5,
    ("fusion", "−80 % parameters"): -1.9,
    ("fusion", "−90 % parameters"): -6.9,
}
"""And after the steps of training."""

ASKED_OF_IMAGES, ASKED_WITHOUT_LABELS = -0.5, -1.5
"""And on real images, with labels and without."""


def asked(network: str, budget: str, way: Way) -> float | None:
    """Return how much the worst task may lose; ``None``: nobody asked."""
    if way.distilled:
        return ASKED_TRAINED.get((network, budget))
    if network.startswith("driving n,"):
        return ASKED_OF_IMAGES if way.labels else ASKED_WITHOUT_LABELS
    return ASKED.get((network, budget))


def networks() -> dict[str, Network]:
    """Return the networks by the name of their rows; with ``$TASKPRUNE_DATA`` real images too."""
    found = subjects()
    real = [driving_n_on(Path(root)) for root in (os.environ.get("TASKPRUNE_DATA"),) if root]
    return {
        **{
            subject.name: _of_subject(subject, {"−32.7 % parameters": Budget.from_ratio(0.327)}, {})
            for subject in real
        },
        "driving n": _of_subject(
            found["driving n"],
            {
                "−32.7 % parameters": Budget.from_ratio(0.327),
                "85 % of the MACs": Budget(macs=0.85),
                "70 % of the MACs": Budget(macs=0.7),
                "60 % of the MACs": Budget(macs=0.6),
            },
            distilling={"60 % of the MACs": 150},
        ),
        "dense": _of_subject(
            found["dense"],
            {"50 % of the MACs": Budget(macs=0.5), "30 % of the MACs": Budget(macs=0.3)},
            distilling={"50 % of the MACs": 100},
        ),
        "fusion": Network(
            teacher=lambda _seed: load_fusion_teacher(),
            tasks=lambda: fusion_tasks(load_fusion_teacher().config.grid),
            forward=fusion_forward,
            calibration=lambda seed: fusion_calibration(seed, 8),
            held_out=lambda _seed: fusion_calibration(HELD_OUT_SEED, 16),
            judge=_judge_fusion,
            budgets={
                "−50 % parameters": Budget.from_ratio(0.5),
                "−80 % parameters": Budget.from_ratio(0.8),
                "−90 % parameters": Budget.from_ratio(0.9),
            },
            distilling={"−80 % parameters": 40, "−90 % parameters": 40},
            lessons=_fusion_lessons,
        ),
    }


def _of_subject(
    subject: Subject, budgets: Mapping[str, Budget], distilling: Mapping[str, int]
) -> Network:
    return Network(
        teacher=subject.teacher,
        tasks=subject.tasks,
        forward=subject.forward,
        calibration=subject.calibration,
        held_out=subject.held_out,
        judge=subject.judge,
        budgets=budgets,
        distilling=distilling,
        lessons=lambda seed, steps: lessons_of(subject, seed, steps),
    )


def _fusion_lessons(seed: int, steps: int) -> Lessons:
    return Lessons(
        fusion_tasks(load_fusion_teacher().config.grid),
        fusion_forward,
        fusion_tuning(seed, steps),
        fusion_calibration(HELD_OUT_SEED, 8),
    )


def _judge_fusion(model: nn.Module, n_images: int) -> dict[str, float]:
    boxes, ground = BoxMetric(load_fusion_teacher().config.grid), GroundMetric()
    with evaluating(model), no_grad(), flushed_denormals():
        for batch in fusion_validation("clean", n_images):
            outputs = fusion_forward(model, batch)
            boxes.update(outputs, batch)
            ground.update(outputs, batch)
    summary = boxes.summary()
    average_precision = 50 * (summary["map_bev"] + summary["map_3d"])
    return {"detection": average_precision, "drivable": 100 * ground.compute()}


def cell(
    name: str, network: Network, budget: str, way: Way, seed: int, n_images: int, device: str
) -> Cell:
    """Prune in one way, on a device, train where the way says so, and judge."""
    teacher = network.teacher(seed)
    before = network.judge(teacher, n_images)
    target = network.budgets[budget]

    def make() -> Student:
        return pruned(
            way,
            teacher.to(device),
            network.tasks(),
            data=[batch.to(device) for batch in network.calibration(seed)],
            held_out=[b.to(device) for b in network.held_out(seed)] if way.balanced else (),
            forward=network.forward,
            budget=target,
        )

    student = kept(name, way, target, seed, teacher, make) if way.distilled else make()
    model = student.model
    if way.distilled:
        steps = network.distilling[budget]
        lessons = network.lessons(seed, steps)
        model = healed(student, teacher, lessons, recipe(way, steps, seed))
    after = network.judge(model.cpu(), n_images)
    return {
        "removed": {cost: student.removed(cost) for cost in ("params", "macs")},
        "before": dict(before),
        "lost": {task: after[task] - before[task] for task in before},
        "steps": student.steps,
        "seconds": student.seconds,
        "device": device,
        "torch": torch.__version__,
    }


def named_cell(name: str, budget: str, way: str, seed: int, images: int, device: str) -> Cell:
    """Measure a cell by the names in its identity; one process, one thread."""
    network = networks()[name]
    measured = cell(name, network, budget, WAYS[way], seed, images, device)
    return {**identity(name, budget, way, seed, images), **measured}


def compute(args: argparse.Namespace) -> None:
    """Measure the cells that are missing."""
    cells = Cells("compensation")
    wanted = [
        (name, budget, way, seed)
        for seed in args.seeds
        for name in args.networks
        for budget in networks()[name].budgets
        for way in args.ways
        if not WAYS[way].distilled or budget in networks()[name].distilling
        if not cells.has(identity(name, budget, way, seed, args.images))
    ]
    measure(cells, wanted, args.images, jobs=args.jobs, device=args.device)


def measure(
    cells: Cells,
    wanted: Iterable[tuple[str, str, str, int]],
    images: int,
    *,
    jobs: int = 1,
    device: str = "cpu",
) -> None:
    """Measure cells in processes of their own, and keep each as it is done."""
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        running = [pool.submit(named_cell, *names, images, device) for names in wanted]
        for done in track(as_completed(running), "compensation", total=len(running)):
            cells.append(done.result())


def identity(network: str, budget: str, way: str, seed: int, images: int) -> dict[str, Any]:
    return {"network": network, "budget": budget, "way": way, "seed": seed, "images": images}


def rows(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Average over seeds: a row per network, budget and way."""
    grouped: dict[tuple[str, str, str], list[Cell]] = {}
    for one in cells:
        grouped.setdefault((one["network"], one["budget"], one["way"]), []).append(one)
    rows_in_order = (
        (name, budget, way)
        for name, network in networks().items()
        for budget in network.budgets
        for way in WAYS
    )
    places = {row: place for place, row in enumerate(rows_in_order)}
    ways = list(WAYS)
    found = []
    for key, group in sorted(
        grouped.items(),
        # Cells on data that is not at hand come last.
        key=lambda item: (places.get(item[0], len(places)), item[0][:2], ways.index(item[0][2])),
    ):
        name, budget, way = key
        worst = [min(one["lost"].values()) for one in group]
        found.append(
            {
                "network": name,
                "budget": budget,
                "way": way,
                "seeds": len(group),
                "MACs removed %": 100 * _mean(one["removed"]["macs"] for one in group),
                "worst task": _mean(worst),
                "worst task ±": statistics.stdev(worst) if len(worst) > 1 else None,
                "asked": asked(name, budget, WAYS[way]),
                "tasks": {
                    task: _mean(one["lost"][task] for one in group) for task in group[0]["lost"]
                },
                "seconds": _mean(one["seconds"] for one in group),
            }
        )
    return found


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(networks()))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=160, help="unseen images to judge on")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--finished", action="store_true", help="tabulate, compute nothing")
    args = parser.parse_args()
    if not args.finished:
        compute(args)
    same = [one for one in Cells("compensation").all() if one["images"] == args.images]
    table = rows(same)
    for name in dict.fromkeys(row["network"] for row in table):
        show(
            f"Points lost without training, {name}",
            [
                {
                    **{
                        key: row[key]
                        for key in ("budget", "way", "seeds", "worst task", "worst task ±", "asked")
                    },
                    **row["tasks"],
                }
                for row in table
                if row["network"] == name
            ],
        )
    record("compensation", {"settings": {"images": args.images}, "rows": table})


if __name__ == "__main__":
    main()
