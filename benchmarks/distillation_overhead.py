"""What the trainer costs beside a bare PyTorch loop that does the same work.

    python benchmarks/distillation_overhead.py [--rounds 10] [--steps 8] [--batch-size 4]

Both train the same pruned student of the bundled net on the same batches in memory: the teacher's
forward pass, the student's with its task losses and PKD on the same taps, backward, clipping, AdamW
and one read-back of the loss. They take turns in one process, so that both see the same machine;
the first steps of each turn are left out. A turn's figure is its median step; the ratios are those
of turns next to each other, median, lowest and highest, of wall-clock time (the one that counts, on
a quiet machine) and of processor time.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from typing import Any

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

Times = dict[str, float]
"""Seconds by clock."""

WARM_UP = 2
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
LEARNING_RATE = 3e-4


def trainer_times(
    student: nn.Module,
    teacher: nn.Module,
    plan: taskprune.PruningPlan,
    batches: list[DrivingBatch],
    steps: int,
) -> list[Times]:
    ends: list[Times] = []

    def mark(_record: StepRecord, _student: nn.Module) -> None:
        ends.append(_now())

    taskprune.distill(
        student,
        teacher=teacher,
        tasks=driving_tasks(),
        data=batches,
        plan=plan,
        forward=forward,
        settings=DistillSettings(
            steps=steps, learning_rate=LEARNING_RATE, cpu=True, callbacks=(mark,)
        ),
    )
    return _gaps(ends)


def bare_times(
    student: nn.Module,
    teacher: nn.Module,
    plan: taskprune.PruningPlan,
    batches: list[DrivingBatch],
    steps: int,
) -> list[Times]:
    tasks = driving_tasks()
    keep = {k.name: torch.tensor(k.keep) for k in plan.activations}
    names = FEATURE_MODULES  # what the trainer taps by default
    seen: dict[nn.Module, dict[str, Tensor]] = {student: {}, teacher: {}}
    handles = []
    for model, features in seen.items():
        for name in names:

            def hook(_m: Any, _a: Any, output: Tensor, f: Any = features, n: str = name) -> None:
                f[n] = output

            handles.append(model.get_submodule(name).register_forward_hook(hook))
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    teacher.eval()
    student.train()
    ends: list[Times] = []
    for step in range(steps):
        batch = batches[step % len(batches)]
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
        ends.append(_now())
    for handle in handles:
        handle.remove()
    return _gaps(ends)


def _now() -> Times:
    return {name: clock() for name, clock in CLOCKS.items()}


def _gaps(ends: list[Times]) -> list[Times]:
    pairs = zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False)
    return [{clock: after[clock] - before[clock] for clock in CLOCKS} for before, after in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="turns of each")
    parser.add_argument("--steps", type=int, default=8, help="steps in a turn")
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = load_teacher()
    scenes = RoadScenes(4 * args.batch_size, seed=5)
    batches = list(loader(scenes, batch_size=args.batch_size, shuffle=False, seed=0))
    pruned = taskprune.prune(
        teacher, driving_tasks(), ratio=0.327, data=batches, forward=forward, n_batches=2
    )
    loops = {"trainer": trainer_times, "bare loop": bare_times}
    turns: dict[str, list[Times]] = {name: [] for name in loops}
    for turn in range(args.rounds):
        for name in loops if turn % 2 else reversed(loops):
            student = copy.deepcopy(pruned.model)
            steps = loops[name](student, teacher, pruned.plan, batches, args.steps)
            turns[name].append({c: statistics.median(step[c] for step in steps) for c in CLOCKS})
    pairs = list(zip(turns["trainer"], turns["bare loop"], strict=True))
    rows = []
    for clock in CLOCKS:
        ratios = [trainer[clock] / bare[clock] for trainer, bare in pairs]
        rows.append(
            {
                "clock": clock,
                **{f"{n} ms": 1e3 * statistics.median(t[clock] for t in turns[n]) for n in loops},
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        )
    show("A step of distillation: the trainer's time over a bare loop's", rows)
    settings = {"rounds": args.rounds, "steps": args.steps, "batch_size": args.batch_size}
    record("distillation_overhead", {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
