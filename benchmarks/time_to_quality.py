"""How long from a trained network to a smaller one that is as good? Processor time, side by side.

    python benchmarks/time_to_quality.py                    # all cells, then table and plot
    python benchmarks/time_to_quality.py --networks dense --ways random --seeds 0
    python benchmarks/time_to_quality.py --finished         # only the table

Every way removes 30 % of the multiply-adds under the same limits and then trains, until the worst
task has lost at most one point on unseen scenes or the time is up. *Ours* compensates in steps, and
distils; the others rank the same groups, slice, and fine-tune on the labels, which is what one does
with them. All see the same batches in the same order, and training is the same loop at a constant
learning rate, judged by a running average of the weights, so that every moment of a run is as good
an end as any other.

Time is that of one processor thread, pruning (calibration included) and training added up, so that
other work on the machine adds little; judging does not count. Runs are judged after 0, 5, 10, 20,
40, ... steps. Cells are kept in ``benchmarks/results/cells/time_to_quality.jsonl`` as they finish.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch_pruning as tp
from cells import Cell, Cells
from protocol import record, show
from rich.progress import track
from students import Student, Way, pruned, recipe
from subjects import Subject, subjects
from torch import nn

import taskprune
from taskprune import Budget
from taskprune.distillation import StepRecord
from taskprune.importance import TorchPruningImportance
from taskprune.restore import flushed_denormals

BUDGET = Budget(macs=0.7)
TOLERANCE = 1.0
"""Points that the worst task may lose."""

AVERAGE_DECAY = 0.95
RATE, RATE_OF_FINE_TUNING = 3e-4, 5e-4
"""Of AdamW; `criteria.py` fine-tunes at the latter. Of 3e-4 and 1e-3 a
compensated network took the former better, on one seed."""

WARMUP_STEPS = 5
FIRST_JUDGED = 5
MOST_STEPS = 5120

WAYS: Mapping[str, Way] = {
    "taskprune": Way("task_change", compensate=True, steps="auto"),
    "taskprune in one step": Way("task_change", compensate=True),
    "Torch-Pruning's score, fine-tuned": Way(
        TorchPruningImportance(tp.importance.GroupTaylorImportance()), compensate=False
    ),
    "magnitude, fine-tuned": Way("magnitude", compensate=False),
    "random, fine-tuned": Way("random", compensate=False),
}


class _Enough(Exception):  # noqa: N818 - how a run ends, no error
    """Ends a run."""


@dataclass
class Run:
    """One way on one network, watched while it trains.

    Attributes:
        subject: The network and its scenes.
        reference: What its teacher reaches, in points.
        n_images: To judge on.
        limit: Seconds of training.
        seconds: Spent so far, judging left out.
        curve: ``(steps, seconds, points lost by task)`` of every judgement.
    """

    subject: Subject
    reference: Mapping[str, float]
    n_images: int
    limit: float
    seconds: float
    curve: list[tuple[int, float, dict[str, float]]] = field(default_factory=list)
    started: float = 0.0

    def judge(self, steps: int, model: nn.Module) -> None:
        """Judge, off the clock; end the run where it is good enough or its time is up."""
        found = self.subject.judge(model, self.n_images)
        lost = {task: found[task] - self.reference[task] for task in found}
        self.curve.append((steps, self.seconds, lost))
        if min(lost.values()) >= -TOLERANCE:
            raise _Enough

    def __call__(self, step: StepRecord, student: nn.Module) -> None:
        """Take the time of a step, and judge where it is due."""
        now = time.process_time()
        self.seconds += now - self.started
        self.limit -= now - self.started
        ladder = step.step / FIRST_JUDGED
        is_over = self.limit <= 0
        if is_over or (ladder >= 1 and ladder.is_integer() and not int(ladder) & int(ladder) - 1):
            self.judge(step.step, student)
        if is_over:
            raise _Enough
        self.started = time.process_time()


def cell(subject: Subject, way: Way, seed: int, args: argparse.Namespace) -> Cell:
    """Prune in one way, train until it is good enough, and say when what was reached."""
    teacher = subject.teacher(seed)
    reference = subject.judge(teacher, args.images)
    student = pruned(
        way,
        teacher,
        subject.tasks(),
        data=subject.calibration(seed),
        forward=subject.forward,
        budget=BUDGET,
    )
    run = Run(subject, reference, args.images, args.limit, student.seconds)
    try:
        run.judge(0, student.model)
        train(run, student, teacher, way, seed)
    except _Enough:
        pass
    return {
        "teacher": reference,
        "removed": {cost: student.removed(cost) for cost in ("params", "macs")},
        "pruning seconds": student.seconds,
        "curve": run.curve,
        "torch": torch.__version__,
    }


def train(run: Run, student: Student, teacher: nn.Module, way: Way, seed: int) -> None:
    """Train a student until the run ends it."""
    subject = run.subject
    rate = RATE if way.compensate else RATE_OF_FINE_TUNING
    settings = replace(
        recipe(way, MOST_STEPS, seed),
        learning_rate=lambda step: rate * min(1.0, (step + 1) / WARMUP_STEPS),
        ema_decay=AVERAGE_DECAY,
        feature_weight=1.0 if way.compensate else 0.0,
        callbacks=(run,),
    )
    run.started = time.process_time()
    with flushed_denormals():
        taskprune.distill(
            copy.deepcopy(student.model),
            teacher=teacher,
            tasks=subject.tasks(),
            data=subject.training(seed, MOST_STEPS),
            plan=student.plan,
            taps=subject.taps if way.compensate else (),
            forward=subject.forward,
            settings=settings,
        )


def identity(network: str, way: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "network": network,
        "way": way,
        "seed": seed,
        "images": args.images,
        "limit": args.limit,
    }


def compute(args: argparse.Namespace) -> None:
    """Measure the cells that are missing."""
    cells = Cells("time_to_quality")
    wanted = [
        (network, way, seed)
        for seed in args.seeds
        for network in args.networks
        for way in args.ways
        if not cells.has(identity(network, way, seed, args))
    ]
    for network, way, seed in track(wanted, "time to quality"):
        found = cell(subjects()[network], WAYS[way], seed, args)
        cells.append({**identity(network, way, seed, args), **found})


def rows(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Return a row a network and way: when it was good enough, and where it ended."""
    grouped: dict[tuple[str, str], list[Cell]] = {}
    for one in cells:
        grouped.setdefault((one["network"], one["way"]), []).append(one)
    order = list(WAYS)
    return [
        {
            "network": network,
            "way": way,
            "seeds": len(group),
            "good enough": sum(seconds_to_quality(one) is not None for one in group),
            "seconds": _median([seconds_to_quality(one) for one in group]),
            "pruning seconds": statistics.median(one["pruning seconds"] for one in group),
            "at once": statistics.median(worst(one, 0) for one in group),
            "at the end": statistics.median(worst(one, -1) for one in group),
            "steps": statistics.median(one["curve"][-1][0] for one in group),
            "curves": [[[s, min(lost.values())] for _, s, lost in one["curve"]] for one in group],
        }
        for (network, way), group in sorted(
            grouped.items(), key=lambda item: (item[0][0], order.index(item[0][1]))
        )
    ]


def worst(cell: Cell, place: int) -> float:
    """Return what the worst task has lost at a judgement."""
    return float(min(cell["curve"][place][2].values()))


def seconds_to_quality(cell: Cell) -> float | None:
    """Return when the worst task had lost little enough; ``None`` if it never had."""
    return float(cell["curve"][-1][1]) if worst(cell, -1) >= -TOLERANCE else None


def _median(values: list[float | None]) -> float | None:
    """Return the median; ``None`` where a run has none."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if len(known) == len(values) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(subjects()))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=float, default=300, help="seconds of training")
    parser.add_argument("--images", type=int, default=160, help="unseen images to judge on")
    parser.add_argument("--finished", action="store_true", help="tabulate, compute nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.finished:
        compute(args)
    same = Cells("time_to_quality").matching({"images": args.images, "limit": args.limit})
    table = rows(same)
    if table:
        show("Time to quality", [{k: v for k, v in r.items() if k != "curves"} for r in table])
    settings = {"images": args.images, "limit": args.limit, "tolerance": TOLERANCE}
    record("time_to_quality", {"settings": settings, "rows": table})


if __name__ == "__main__":
    main()
