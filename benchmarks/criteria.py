"""Which importance criterion hurts the worst task least, at equal multiply-adds?

Every criterion scores the same trained network on the same calibration images, keeps the same
fraction of the multiply-adds under the same safety limits, and is judged on the same unseen images:
right after pruning (no fine-tuning, no BatchNorm recalibration), and after equal fine-tuning on the
labels alone. Torch-Pruning's criteria score our groups through the adapter, so that the comparison
is about the score; on the network it can prune, Torch-Pruning itself, with its own grouping and
without limits, is a row too.

    python benchmarks/criteria.py                      # all cells, then the tables
    python benchmarks/criteria.py --subjects dense --seeds 0 --keep 0.5 --steps 0
    python benchmarks/criteria.py --finished           # only the tables

Cells are kept in ``benchmarks/results/cells/criteria.jsonl`` as they finish, with the commit that
measured them. The file is committed: a run that was stopped goes on, in another checkout as well.
A row is shown once all of its seeds are there. Points are 100 x metric; "worst" is the largest loss
among the tasks; ± is the standard deviation over seeds, which draw calibration and fine-tuning
images, and for "dense" train another network.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from cells import Cells
from protocol import record, show
from rich.progress import track
from subjects import Subject, subjects
from torch import nn

import taskprune
from taskprune import Budget, ChannelScores, CouplingGroups
from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.importance import (
    CosineConflict,
    Importance,
    TaskTaylorImportance,
    TorchPruningImportance,
    by_mean_loss,
    importance_by_name,
    output_owners,
)
from taskprune.importance.aggregation import maximum
from taskprune.restore import flushed_denormals

PENALISED = "task Taylor − effect conflict"
FORMER = "the same by mean loss, without correlation"
ITSELF = "Torch-Pruning itself, GroupTaylor"
TUNED = ("random", "task Taylor", PENALISED, FORMER, "Torch-Pruning GroupTaylor", ITSELF)
"""Those that are fine-tuned as well; the others would say little more for their time."""


def criteria() -> dict[str, Callable[[], Importance]]:
    """Return the compared criteria by the name of their row."""
    by_name = importance_by_name
    adapted = TorchPruningImportance
    return {
        "random": lambda: by_name("random"),
        "magnitude": lambda: by_name("magnitude"),
        "CosPrune": lambda: by_name("cosprune"),
        "Taylor of the summed loss": lambda: by_name("taylor"),
        "task Taylor": lambda: TaskTaylorImportance(conflict_weight=0.0),
        "task Taylor, worst task": lambda: TaskTaylorImportance(
            conflict_weight=0.0, aggregate=maximum
        ),
        PENALISED: lambda: by_name("task_taylor"),
        FORMER: lambda: TaskTaylorImportance(normalise=by_mean_loss, correlation=0.0),
        "task Taylor − cosine conflict": lambda: TaskTaylorImportance(conflict=CosineConflict()),
        "Torch-Pruning GroupTaylor": lambda: adapted(tp.importance.GroupTaylorImportance()),
        "Torch-Pruning GroupTaylor, multivariable": lambda: adapted(
            tp.importance.GroupTaylorImportance(multivariable=True)
        ),
        "Torch-Pruning GroupMagnitude": lambda: adapted(tp.importance.GroupMagnitudeImportance()),
    }


class Bench:
    """One subject and seed, traced and coupled once for all criteria."""

    def __init__(self, subject: Subject, seed: int, args: argparse.Namespace) -> None:
        self.subject, self.seed, self.args = subject, seed, args
        self.teacher = subject.teacher(seed)
        self.tasks = subject.tasks()
        self.calibration = list(subject.calibration(seed))
        self.reference = subject.judge(self.teacher, args.images)
        first = self.calibration[0]
        owners = output_owners(self.teacher, self.tasks, first, forward=subject.forward)
        graph = trace(self.teacher, first, forward=subject.forward, tasks=owners)
        self.groups: CouplingGroups = couple(graph)

    def cells(self, name: str, keeps: Sequence[float]) -> Iterator[dict[str, Any]]:
        """Prune with one criterion to each of these budgets and judge."""
        if name == ITSELF:
            yield from self._cells_of_torch_pruning(keeps)
            return
        scores = self._scores(name)
        for keep in keeps:
            plan = taskprune.solve(self.groups, scores, Budget(macs=keep))
            model = taskprune.apply_plan(self.teacher, plan, verify=False)
            removed = {cost: 1 - after / before for cost, (before, after) in plan.costs.items()}
            yield self._cell(name, keep, model, removed)

    def _scores(self, name: str) -> ChannelScores:
        with flushed_denormals():
            return taskprune.score(
                self.teacher,
                self.groups,
                self.tasks,
                self.calibration,
                importance=criteria()[name](),
                forward=self.subject.forward,
            )

    def _cell(
        self, name: str, keep: float, model: nn.Module, removed: Mapping[str, float]
    ) -> dict[str, Any]:
        cell: dict[str, Any] = {
            **identity(self.subject, name, self.seed, self.args),
            "keep": keep,
            "removed": dict(removed),
            "before": self._lost(model),
        }
        if steps := cell["steps"]:
            self._fine_tune(model, steps)
            cell["after"] = self._lost(model)
        return cell

    def _lost(self, model: nn.Module) -> dict[str, float]:
        found = self.subject.judge(model, self.args.images)
        return {task: found[task] - self.reference[task] for task in found}

    def _fine_tune(self, model: nn.Module, steps: int) -> None:
        """Train on the labels alone; distillation is another benchmark's question."""
        taskprune.distill(
            model,
            teacher=self.teacher,
            tasks=self.tasks,
            data=self.subject.training(self.seed, steps),
            taps=self.subject.taps,
            forward=self.subject.forward,
            settings=taskprune.DistillSettings(
                steps=steps, seed=self.seed, feature_weight=0.0, learning_rate=5e-4
            ),
        )

    def _cells_of_torch_pruning(self, keeps: Sequence[float]) -> Iterator[dict[str, Any]]:
        """Let Torch-Pruning group, rank and cut; its channel ratio is searched for the budget."""
        example = self.calibration[0].images[:1]
        original, _ = tp.utils.count_ops_and_params(self.teacher, example)
        heads = [m for n, m in self.teacher.named_modules() if n.startswith("heads.")]
        ignored = [m for m in heads if isinstance(m, nn.Conv2d) and m.out_channels == 1]
        for keep in keeps:
            low, high, best = 0.0, 0.95, None
            for _ in range(7):
                ratio = (low + high) / 2
                model = self._pruned_by_torch_pruning(ratio, example, ignored)
                macs, _ = tp.utils.count_ops_and_params(model, example)
                if macs <= keep * original:
                    high, best = ratio, model
                else:
                    low = ratio
            assert best is not None
            macs, params = tp.utils.count_ops_and_params(best, example)
            before = sum(p.numel() for p in self.teacher.parameters())
            removed = {"macs": 1 - macs / original, "params": 1 - params / before}
            yield self._cell(ITSELF, keep, best, removed)

    def _pruned_by_torch_pruning(
        self, ratio: float, example: torch.Tensor, ignored: Sequence[nn.Module]
    ) -> nn.Module:
        model = copy.deepcopy(self.teacher)
        names = {m: n for n, m in self.teacher.named_modules()}
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.GroupTaylorImportance(),
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            global_pruning=True,
            ignored_layers=[model.get_submodule(names[m]) for m in ignored],
        )
        for batch in self.calibration:
            outputs = self.subject.forward(model, batch)
            losses = [task.loss(outputs, batch) for task in self.tasks.values()]
            total = torch.stack([loss for loss in losses if loss is not None]).sum()
            torch.autograd.backward(total)
        pruner.step()
        model.zero_grad()
        return model.eval()


def identity(subject: Subject, name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    steps = subject.steps if args.steps is None else args.steps
    return {
        "subject": subject.name,
        "criterion": name,
        "seed": seed,
        "images": args.images,
        "steps": steps if name in TUNED else 0,
    }


def compute(args: argparse.Namespace) -> None:
    """Compute the cells that are missing."""
    cells = Cells("criteria")
    for name in args.subjects:
        subject = subjects(args.data)[name]
        for seed in args.seeds:
            possible = [*criteria(), *([ITSELF] if name != "driving n" else [])]
            names = [
                criterion for criterion in possible if criterion in (args.criteria or possible)
            ]
            todo: dict[str, list[float]] = {}
            for criterion in names:
                key = identity(subject, criterion, seed, args)
                budgets = args.keep or subject.keep
                missing = [keep for keep in budgets if not cells.has({**key, "keep": keep})]
                if missing:
                    todo[criterion] = missing
            if not todo:
                continue
            bench = Bench(subject, seed, args)
            for criterion in track(todo, description=f"{name}, seed {seed}"):
                for cell in bench.cells(criterion, todo[criterion]):
                    cells.append(cell)


def cells_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return all cells that there are, of every network and criterion."""
    cells = Cells("criteria")
    return [
        cell
        for subject in subjects(args.data).values()
        for criterion in (*criteria(), ITSELF)
        for seed in args.seeds
        for cell in cells.matching(identity(subject, criterion, seed, args))
    ]


def rows(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over seeds: a row per subject, budget and criterion."""
    grouped: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for cell in cells:
        key = (cell["subject"], cell["keep"], cell["criterion"])
        grouped.setdefault(key, []).append(cell)
    found = []
    for (subject, keep, criterion), group in grouped.items():
        row: dict[str, Any] = {"network": subject, "MACs kept": keep, "criterion": criterion}
        row["seeds"] = len(group)
        row["params removed %"] = 100 * statistics.fmean(c["removed"]["params"] for c in group)
        for when in ("before", "after"):
            lost = [c[when] for c in group if when in c]
            worst = [min(values.values()) for values in lost]
            row[f"worst {when}"] = statistics.fmean(worst) if worst else None
            row[f"worst {when} ±"] = statistics.stdev(worst) if len(worst) > 1 else None
            row[f"tasks {when}"] = (
                {task: statistics.fmean(v[task] for v in lost) for task in lost[0]}
                if lost
                else None
            )
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", nargs="+", default=["driving n", "dense"])
    parser.add_argument("--data", type=Path, default=os.environ.get("TASKPRUNE_DATA"))
    parser.add_argument("--criteria", nargs="+", metavar="ROW", help="default: all")
    parser.add_argument("--finished", action="store_true", help="tabulate, compute nothing")
    parser.add_argument("--keep", type=float, nargs="+", help="MACs kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of fine-tuning; 0: none; default: the network's")
    parser.add_argument("--images", type=int, default=96, help="unseen images to judge on")
    args = parser.parse_args()
    if not args.finished:
        compute(args)
    table = [row for row in rows(cells_of(args)) if row["seeds"] == len(args.seeds)]
    for subject in dict.fromkeys(row["network"] for row in table):
        shown = [
            {k: v for k, v in row.items() if not isinstance(v, dict) and k != "network"}
            for row in table
            if row["network"] == subject
        ]
        if shown:
            show(f"Points lost, {subject}", shown)
    settings = {"seeds": args.seeds, "images": args.images}
    record("criteria", {"settings": settings, "rows": table})


if __name__ == "__main__":
    main()
