"""How do time and memory of every stage grow with the model and with the number of tasks?

    python benchmarks/scaling.py [--limit 900] [--jobs 1] [--up-to 1e9]
    python benchmarks/scaling.py --finished            # only the table

Three families from 1 million to 1 billion parameters with two tasks: *deeper*, residual blocks of
fixed width, so that the graph grows; *wider*, eight such blocks, and *convolutions*, eight layers,
both of growing width, so that tensors grow. Then one to 32 tasks on a net of 10 million parameters.
Every point has a process of its own, one thread, and a limit of processor time, which is what the
seconds are. Scores are those of the default criterion on two batches of two samples. Memory is the
peak of the resident set over all stages above what it was with the model there, in sizes of the
model. An exponent is the slope of the logarithms over the points of at least 10 million
parameters, or four tasks: below, what is spent once weighs most.

Beside it: Torch-Pruning's dependency graph, ranking by magnitude and cutting, to be held against
trace, couple, solve and rewrite together, and torch-kirigami's dependency graph and candidates, to
be held against trace and couple. One that fails or does not end is a row.
"""

from __future__ import annotations

import argparse
import itertools
import math
import resource
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cells
from children import Outcome, limit_processor_time, report, run_all, run_child, watched
from footprint import measured_params, peak, resident
from peers import kirigami_groups, torch_pruning_result
from protocol import record, show
from torch import Tensor, nn

import taskprune
from taskprune import Budget, CouplingGroups, PruningPlan, Task
from taskprune.rewrite.verification import verify_against_masked

STAGES = ("trace", "couple", "score", "solve", "rewrite", "verify", "compensate")
LIBRARIES = ("taskprune", "torch-pruning", "torch-kirigami")
SIZES = (1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9)
TASKS = (1, 2, 4, 8, 16, 32)
WIDTH = 256
LAYERS = 8
SMALL = 5e5
BLOCK = 8
"""Parameters of a block, in squares of its width."""


class Block(nn.Module):
    """Norm, a layer four times as wide, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.narrow(self.wide(self.norm(x)).relu())
        return out


class Tokens(nn.Module):
    """Residual blocks on tokens, with a linear head for each task."""

    def __init__(self, width: int, depth: int, tasks: int) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)  # what comes from outside has no channels to cut
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.heads = nn.ModuleList(nn.Linear(width, 8) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.blocks(self.embed(x))
        return [head(features) for head in self.heads]


class Images(nn.Module):
    """Convolutions and norms, with a convolution for each task."""

    def __init__(self, width: int, depth: int, tasks: int) -> None:
        super().__init__()
        sizes = [3, *[width] * depth]
        self.trunk = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in itertools.pairwise(sizes)
            )
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, 8, 1) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.trunk(x)
        return [head(features) for head in self.heads]


def built(family: str, size: float, tasks: int) -> tuple[nn.Module, list[Tensor]]:
    """Return a net of about so many parameters, and its batches."""
    if family == "convolutions":
        width = round(math.sqrt(size / (9 * (LAYERS - 1))))
        return Images(width, LAYERS, tasks), [torch.randn(2, 3, 8, 8) for _ in range(2)]
    depth = LAYERS if family == "wider" else round(size / (BLOCK * WIDTH**2))
    width = WIDTH if family != "wider" else round(math.sqrt(size / (BLOCK * LAYERS)))
    return Tokens(width, depth, tasks), [torch.randn(2, 16, width) for _ in range(2)]


def points(up_to: float) -> list[tuple[str, float, int]]:
    """Return all points: family, parameters, tasks."""
    families = ("deeper", "wider", "convolutions")
    return [(f, size, 2) for f in families for size in SIZES if size <= up_to] + [
        ("tasks", 1e7, tasks) for tasks in TASKS
    ]


class Stages:
    """Takes every stage by itself, and notes its seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def take(self, stage: str, work: Callable[[], Any]) -> Any:
        with watched() as watch:
            found = work()
        self.seconds[stage] = watch.seconds
        return found


def staged(model: nn.Module, batches: Sequence[Tensor], n_tasks: int) -> Outcome:
    """Return the seconds of every stage, and the peak of memory over all."""
    tasks = {f"task {n}": Task(partial(_loss, n), outputs=(str(n),)) for n in range(n_tasks)}
    before, stages = resident(), Stages()
    plan, groups = _decided(model, batches, tasks, stages)
    kept = _carried_out(model, plan, groups, batches[0], stages)
    stages.take("compensate", lambda: taskprune.compensate(model, plan, batches, tasks=tasks))
    return {"stages": stages.seconds, "bytes": max(peak() - before, 0.0), "kept": kept}


def _decided(
    model: nn.Module, batches: Sequence[Tensor], tasks: Mapping[str, Task], stages: Stages
) -> tuple[PruningPlan, CouplingGroups]:
    outputs = {f"task {n}": (str(n),) for n in range(len(tasks))}
    graph = stages.take("trace", lambda: taskprune.trace(model, batches[0], tasks=outputs))
    groups = stages.take("couple", lambda: taskprune.couple(graph))
    scores = stages.take("score", lambda: taskprune.score(model, groups, tasks, batches))
    budget = Budget(params=0.7)
    return stages.take("solve", lambda: taskprune.solve(groups, scores, budget)), groups


def _carried_out(
    model: nn.Module, plan: PruningPlan, groups: CouplingGroups, inputs: Tensor, stages: Stages
) -> int:
    smaller = stages.take("rewrite", lambda: taskprune.apply_plan(model, plan, verify=False))
    stages.take(
        "verify",
        lambda: verify_against_masked(
            model, smaller, plan, inputs=inputs, forward=_call, groups=groups
        ),
    )
    return measured_params(smaller)


def _call(model: nn.Module, inputs: Tensor) -> Any:
    return model(inputs)


def _loss(n: int, outputs: Sequence[Tensor], _batch: Tensor) -> Tensor:
    return (outputs[n] - 1).square().mean()


def measured(library: str, family: str, size: float, tasks: int, *, limit: float) -> Outcome:
    """Measure one library at one point, in this process, which ends at the limit."""
    torch.manual_seed(0)
    model, batches = built(family, size, tasks)
    model.eval()
    outcome: Outcome = {"outcome": "ok", "parameters": measured_params(model)}
    with torch.no_grad():
        model(batches[0])
    if library == "taskprune":
        staged(*built(family, SMALL, tasks), tasks)  # what is imported at first use is not measured
    limit_processor_time(limit)
    before = resident()
    try:
        with watched() as watch:
            if library == "taskprune":
                outcome |= staged(model, batches, tasks)
            elif library == "torch-pruning":
                outcome |= torch_pruning_result(model, batches[0], ratio=0.16)
            else:
                outcome["groups"] = kirigami_groups(model, batches[0])
    except ModuleNotFoundError as error:
        return {"outcome": f"absent: {error}"}
    except Exception as error:  # noqa: BLE001 - a library that fails is a row
        return {"outcome": f"error: {type(error).__name__}: {str(error)[:160]}"}
    outcome.setdefault("seconds", watch.seconds)
    outcome.setdefault("bytes", max(peak() - before, 0.0))
    return outcome


def exponent(sizes: Sequence[float], values: Sequence[float], least: float) -> float | None:
    """Return the slope of the logarithms over the sizes from ``least`` on."""
    pairs = [(s, v) for s, v in zip(sizes, values, strict=True) if s >= least and v > 0]
    if len(pairs) < 3:
        return None
    logs = np.log(np.array(pairs))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def exponents(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Fit every family: a row each, with the exponents of all stages, their sum, and memory."""
    rows = []
    ours = [c for c in cells if c["library"] == "taskprune" and "stages" in c]
    for family in dict.fromkeys(c["family"] for c in ours):
        own = sorted((c for c in ours if c["family"] == family), key=_place)
        axis, least = ("tasks", 4) if family == "tasks" else ("parameters", 9e6)
        sizes = [c[axis] for c in own]
        row: dict[str, Any] = {"family": family, "over": axis}
        for stage in STAGES:
            row[stage] = exponent(sizes, [c["stages"][stage] for c in own], least)
        row["all"] = exponent(sizes, [c["seconds"] for c in own], least)
        row["memory"] = exponent(sizes, [c["bytes"] for c in own], least)
        rows.append(row)
    return rows


def _place(cell: Mapping[str, Any]) -> tuple[float, int]:
    return cell["size"], cell["tasks"]


def compute(args: argparse.Namespace, cells: Cells) -> None:
    """Measure the points that are missing."""
    work: dict[str, Callable[[], Outcome]] = {}
    identities = {}
    for library in LIBRARIES:
        for family, size, tasks in points(args.up_to):
            identity = {"library": library, "family": family, "size": size, "tasks": tasks}
            if cells.has(identity) or (family == "tasks" and library != "taskprune"):
                continue
            name = f"{library}, {family} {size:.0e}, {tasks} tasks"
            child = ["--child", library, family, str(size), str(tasks)]
            work[name] = partial(run_child, str(Path(__file__)), child, limit=args.limit)
            identities[name] = identity
    for name, outcome in run_all("scaling", work, jobs=args.jobs):
        cells.append({**identities[name], **outcome})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=900, help="processor seconds of a point")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--up-to", type=float, default=1e9, help="parameters")
    parser.add_argument("--finished", action="store_true", help="tabulate, compute nothing")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        torch.set_num_threads(1)
        library, family, size, tasks = args.child
        report(measured(library, family, float(size), int(tasks), limit=args.limit))
        return
    cells = Cells("scaling")
    if not args.finished:
        compute(args, cells)
    found = sorted(cells.all(), key=lambda cell: (cell["library"], cell["family"], _place(cell)))
    rows = exponents(found)
    show("Exponents", rows)
    record("scaling", {"rows": rows, "points": found})


if __name__ == "__main__":
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 10_000))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
