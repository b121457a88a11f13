"""What the trainer costs beside a bare PyTorch loop that does the same work.

    python benchmarks/distillation_overhead.py [--steps 80] [--batch-size 4]

Both train the same pruned student of the bundled net on the same batches in memory: the teacher's
forward pass, the student's with its task losses and PKD on the same taps, backward, clipping, AdamW
and one read-back of the loss. They take turns step by step, each in a thread of its own that waits
while the other works, so that both see the same machine: over seconds its speed differs by more
than what is measured here. A ratio is that of two steps next to each other, on the same batch; the
table has the median, the quartiles and the median's standard error, of wall-clock time (the one
that counts, on a quiet machine) and of processor time.
"""

from __future__ import annotations

import argparse
import copy
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from protocol import record, show
from torch import Tensor, nn

import taskprune
from taskprune.distillation import DistillSettings, StepRecord, pkd
from taskprune.driving.batch import DrivingBatch
from taskprune.driving.data import RoadScenes, loader
from taskprune.driving.nets import FEATURE_MODULES
from taskprune.driving.tasks import driving_tasks, forward
from taskprune.driving.teacher import load_teacher

WARM_UP = 2
CLOCKS = {"wall": time.perf_counter, "processor": time.thread_time}
LEARNING_RATE = 3e-4
RESAMPLES = 1000


@dataclass
class Lane:
    """One of two loops that take turns: it works while the other waits.

    Attributes:
        gaps: Seconds that each step took, by clock, without the waiting.
    """

    mine: threading.Semaphore
    other: threading.Semaphore
    gaps: dict[str, list[float]] = field(default_factory=lambda: {clock: [] for clock in CLOCKS})
    _resumed: dict[str, float] = field(default_factory=dict)

    def step_done(self) -> None:
        """Note what the step took, let the other loop make one, and wait for it."""
        for name, clock in CLOCKS.items():
            if self._resumed:
                self.gaps[name].append(clock() - self._resumed[name])
        self.other.release()
        self.mine.acquire()
        self._resumed = {name: clock() for name, clock in CLOCKS.items()}


@dataclass(frozen=True)
class Work:
    """What both loops do."""

    student: nn.Module
    teacher: nn.Module
    plan: taskprune.PruningPlan
    batches: list[DrivingBatch]
    steps: int


def train(work: Work, step_done: Callable[[], None]) -> None:
    """Train with the trainer."""

    def mark(_record: StepRecord, _student: nn.Module) -> None:
        step_done()

    taskprune.distill(
        copy.deepcopy(work.student),
        teacher=copy.deepcopy(work.teacher),
        tasks=driving_tasks(),
        data=work.batches,
        plan=work.plan,
        forward=forward,
        settings=DistillSettings(
            steps=work.steps, learning_rate=LEARNING_RATE, cpu=True, callbacks=(mark,)
        ),
    )


def train_bare(work: Work, step_done: Callable[[], None]) -> None:
    """Train with a loop as one would write it by hand."""
    student, teacher = copy.deepcopy(work.student), copy.deepcopy(work.teacher)
    tasks = driving_tasks()
    keep = {k.name: torch.tensor(k.keep) for k in work.plan.activations}
    names = FEATURE_MODULES  # what the trainer taps by default
    seen: dict[nn.Module, dict[str, Tensor]] = {student: {}, teacher: {}}
    for model, features in seen.items():
        for name in names:

            def hook(_m: Any, _a: Any, output: Tensor, f: Any = features, n: str = name) -> None:
                f[n] = output

            model.get_submodule(name).register_forward_hook(hook)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    teacher.eval()
    student.train()
    for step in range(work.steps):
        batch = work.batches[step % len(work.batches)]
        with torch.no_grad():
            forward(teacher, batch)
        outputs = forward(student, batch)
        losses = [task.loss(outputs, batch) for task in tasks.values()]
        for name in names:
            target = seen[teacher][name]
            if name in keep:
                target = target.index_select(1, keep[name])
            losses.append(pkd(seen[student][name], target))
        total = torch.stack([loss for loss in losses if loss is not None]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        if not math.isfinite(total.item()):
            raise ArithmeticError(f"step {step}: the loss is {total.item()}")
        step_done()


def in_turns(work: Work) -> tuple[Lane, Lane]:
    """Run the trainer and the bare loop step by step in turns; return what their steps took."""
    first, second = threading.Semaphore(1), threading.Semaphore(0)
    lanes = Lane(first, second), Lane(second, first)

    def run(lane: Lane, loop: Callable[[Work, Callable[[], None]], None]) -> None:
        torch.set_num_threads(1)
        lane.mine.acquire()
        try:
            loop(work, lane.step_done)
        finally:
            lane.other.release()

    threads = [
        threading.Thread(target=run, args=pair)
        for pair in zip(lanes, (train, train_bare), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if any(len(gaps) != work.steps - 1 for lane in lanes for gaps in lane.gaps.values()):
        raise RuntimeError("a loop ended early; its error is above")
    return lanes


def rows(trainer: Lane, bare: Lane) -> list[dict[str, Any]]:
    """Return the table: a row for each clock."""
    rng = np.random.default_rng(0)
    table = []
    for clock in CLOCKS:
        ours, theirs = (np.array(lane.gaps[clock][WARM_UP:]) for lane in (trainer, bare))
        ratios = ours / theirs
        drawn = np.median(rng.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
        table.append(
            {
                "clock": clock,
                "trainer ms": 1e3 * float(np.median(ours)),
                "bare loop ms": 1e3 * float(np.median(theirs)),
                "ratio": float(np.median(ratios)),
                "standard error": float(drawn.std(ddof=1)),
                "lower quartile": float(np.quantile(ratios, 0.25)),
                "upper quartile": float(np.quantile(ratios, 0.75)),
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80, help="of each loop")
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = load_teacher()
    scenes = RoadScenes(4 * args.batch_size, seed=5)
    batches = list(loader(scenes, batch_size=args.batch_size, shuffle=False, seed=0))
    pruned = taskprune.prune(
        teacher,
        driving_tasks(),
        ratio=0.327,
        data=batches,
        forward=forward,
        settings=taskprune.PruneSettings(n_batches=2),
    )
    work = Work(pruned.model, teacher, pruned.plan, batches, args.steps)
    table = rows(*in_turns(work))
    show("A step of distillation: the trainer's time over a bare loop's", table)
    settings = {"steps": args.steps, "batch_size": args.batch_size}
    record("distillation_overhead", {"settings": settings, "rows": table})


if __name__ == "__main__":
    main()
