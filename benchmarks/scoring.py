"""What does scoring cost next to the gradients it needs? On the bundled network.

Times, side by side in one run, a bare loop of one forward and as many backwards per task as the
criterion takes (the default two, all others one) with nothing done with the gradients, and
``score`` with each criterion on the same batches. Rounds alternate, so
that a machine that slows down slows both; each figure is the median over rounds of processor time,
which leaves out what else the machine was doing. *Compensation* is what ``prune`` takes longer with
it than without, next to scoring the same batches.

    python benchmarks/scoring.py [--rounds 5] [--batches 2] [--batch-size 8]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from protocol import record, show
from torch import nn

from taskprune import PruneSettings, Task, prune
from taskprune.coupling import CouplingGroups, couple
from taskprune.driving.data import RoadScenes, loader
from taskprune.driving.tasks import driving_tasks, forward
from taskprune.driving.teacher import load_teacher
from taskprune.graph import trace
from taskprune.importance import (
    CosineConflict,
    Importance,
    TaskChangeImportance,
    TaskTaylorImportance,
    importance_by_name,
    output_owners,
    score,
)

GOAL = 1.15
DEFAULT = "task_change (default)"


def criteria() -> dict[str, Importance]:
    """Return the timed criteria by the name of their row."""
    names = ("taylor", "cosprune")
    return {
        DEFAULT: TaskChangeImportance(),
        "task_taylor": TaskTaylorImportance(),
        "task_taylor, cosine conflict": TaskTaylorImportance(conflict=CosineConflict()),
        **{name: importance_by_name(name) for name in names},
    }


def bare_loop(
    model: nn.Module, tasks: Mapping[str, Task], batches: list[Any], *, backwards: int = 1
) -> None:
    """One forward and some backwards per task, by all parameters."""
    parameters = tuple(model.parameters())
    for batch in batches:
        outputs = forward(model, batch)
        losses = [task.loss(outputs, batch) for task in tasks.values()]
        for loss in losses * backwards:
            assert loss is not None
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def timed(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def compensation(
    model: nn.Module,
    groups: CouplingGroups,
    tasks: Mapping[str, Task],
    batches: list[Any],
    rounds: int,
) -> dict[str, float]:
    """Return what compensation adds to pruning, over scoring on the same batches."""

    def pruned(*, compensate: bool) -> float:
        return timed(
            lambda: prune(
                model,
                tasks,
                0.327,
                data=batches,
                forward=forward,
                compensate=compensate,
                settings=PruneSettings(verify=False),
            )
        )

    found = [
        (
            timed(lambda: score(model, groups, tasks, batches, forward=forward)),
            pruned(compensate=False),
            pruned(compensate=True),
        )
        for _ in range(rounds)
    ]
    ratios = [(whole - sliced) / scored for scored, sliced, whole in found]
    return {
        "score s": statistics.median(scored for scored, _, _ in found),
        "compensation s": statistics.median(whole - sliced for _, sliced, whole in found),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--criteria", nargs="+", choices=list(criteria()), default=None)
    args = parser.parse_args()
    model, tasks = load_teacher().eval(), driving_tasks()
    scenes = RoadScenes(args.batches * args.batch_size, seed=1000)
    batches = list(loader(scenes, batch_size=args.batch_size, shuffle=False, seed=0))
    owners = output_owners(model, tasks, batches[0], forward=forward)
    groups = couple(trace(model, batches[0], forward=forward, tasks=owners))
    bare_loop(model, tasks, batches[:1])  # the first run pays for what later ones reuse
    rows = []
    for name in args.criteria or criteria():
        criterion, backwards = criteria()[name], 2 if name == DEFAULT else 1
        pairs = [
            (
                timed(lambda n=backwards: bare_loop(model, tasks, batches, backwards=n)),  # type: ignore[misc]
                timed(
                    lambda criterion=criterion: score(  # type: ignore[misc]
                        model, groups, tasks, batches, importance=criterion, forward=forward
                    )
                ),
            )
            for _ in range(args.rounds)
        ]
        bare, scored = zip(*pairs, strict=True)
        ratios = [b / a for a, b in pairs]
        rows.append(
            {
                "criterion": name,
                "backwards": backwards,
                "bare loop s": statistics.median(bare),
                "score s": statistics.median(scored),
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                f"within {GOAL}": str(statistics.median(ratios) <= GOAL).lower(),
            }
        )
    n_channels = sum(group.n_channels for group in groups)
    title = f"Scoring {n_channels:,} channels on {len(batches)} batches of {args.batch_size}"
    show(title, rows)
    settings = {"rounds": args.rounds, "batches": args.batches, "batch_size": args.batch_size}
    added = compensation(model, groups, tasks, batches, args.rounds)
    show("Compensation, next to scoring the same batches", [added])
    record("scoring", {"settings": settings, "rows": rows, "compensation": added})


if __name__ == "__main__":
    main()
