"""Do criteria that look across sensors prune a camera-LiDAR network better?

    python benchmarks/modality.py                      # all cells, then table and plot
    python benchmarks/modality.py --compensate --steps 0 --ratios 0.5 0.8 0.9
    python benchmarks/modality.py --criteria random --ratios 0.5 --seeds 0 --trial

Every criterion scores the bundled fusion net on the same calibration frames and removes the
same share of the parameters under the same safety limits. All results are judged on the same
unseen scenes, before and after equal fine-tuning on the labels: in good weather, with a degraded
camera, and with a degraded LiDAR. A seed draws calibration and fine-tuning frames; the network and
the frames it is judged on are the same for all seeds.

With ``--compensate`` what reads removed channels says what they said, as :func:`taskprune.prune`
has it; without, the weights that are left stay as they were.

"AP" is the mean of KITTI's average precision from above and in space, of both classes, at moderate
difficulty; "IoU" that of the drivable ground; both in points. Cells are kept in
``benchmarks/results/cells/modality.jsonl``, or ``modality_compensated.jsonl``, as they finish; a
run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cells import Cell, Cells
from modality_frames import BATCH_SIZE, CONDITIONS, calibration, tuning, validation
from protocol import RESULTS, record, show
from torch import no_grad

import taskprune
from taskprune import Budget, ChannelScores, CouplingGroups, PruningPlan
from taskprune.coupling import couple
from taskprune.distillation import DistillSettings
from taskprune.driving.fusion import (
    BoxMetric,
    FusionNet,
    GroundMetric,
    fusion_forward,
    fusion_tasks,
    load_fusion_teacher,
)
from taskprune.graph import trace
from taskprune.importance import (
    AlterMomaImportance,
    CrossPruneImportance,
    Importance,
    MagnitudeImportance,
    Modality,
    RandomImportance,
    TaskChangeImportance,
    TaskTaylorImportance,
    TaylorImportance,
    difference,
    modality_of_groups,
)
from taskprune.restore import evaluating, flushed_denormals

IMAGES = Path(__file__).parents[1] / "docs" / "images"
MODALITIES = (Modality("camera", "camera_branch"), Modality("lidar", "lidar_branch"))
RATIOS = (0.5, 0.8, 0.9, 0.3)
"""Those that matter most first: a run that has to be cut short is short of the others."""
CALIBRATION_BATCHES = 4
AVERAGE_DECAY = 0.9

DEFAULT = "task change"
PENALISED = "task Taylor − conflict"
PUBLISHED = "AlterMOMA, difference as published"
CONTRIBUTION = "AlterMOMA, contribution alone"
ACROSS = ("AlterMOMA", "CrossPrune")
"""The criteria that look across modalities and are set against those that do not."""

Judged = dict[str, dict[str, float]]
"""``{condition: {"AP": points, "IoU": points, ...}}``."""


def criteria() -> dict[str, Callable[[int, float], Importance]]:
    """Return ``(seed, ratio) -> criterion`` by the name of its row."""
    return {
        "random": lambda seed, _: RandomImportance(seed=seed),
        "magnitude": lambda *_: MagnitudeImportance(),
        DEFAULT: lambda *_: TaskChangeImportance(),
        "Taylor": lambda *_: TaylorImportance(),
        PENALISED: lambda *_: TaskTaylorImportance(),
        "AlterMOMA": lambda *_: AlterMomaImportance(MODALITIES),
        PUBLISHED: lambda *_: AlterMomaImportance(MODALITIES, combine=difference),
        "CrossPrune": lambda *_: CrossPruneImportance(MODALITIES, fused="fusion"),
        CONTRIBUTION: lambda *_: AlterMomaImportance(MODALITIES, beta=0.0),
    }


def learning_rate(ratio: float) -> float:
    """Return the rate of fine-tuning, the same for all criteria: much gone, much to learn.

    A rate that brings something back where most is gone undoes what a good choice kept where half
    is: so few steps from a standing start only stir the weights.
    """
    return 2e-3 * ratio**3


class Bench:
    """The network, traced and coupled once for all criteria of a seed."""

    def __init__(self, seed: int, args: argparse.Namespace) -> None:
        self.seed, self.args = seed, args
        self.net: FusionNet = load_fusion_teacher()
        self.tasks = fusion_tasks(self.net.config.grid)
        self.calibration = calibration(seed, CALIBRATION_BATCHES)
        graph = trace(
            self.net,
            self.calibration[0],
            forward=fusion_forward,
            tasks={name: (name,) for name in self.tasks},
        )
        self.groups: CouplingGroups = couple(graph)
        self.labels = modality_of_groups(self.groups, MODALITIES)
        self._scores: dict[Importance, ChannelScores] = {}

    def cell(self, name: str, ratio: float, steps: int) -> Cell:
        """Prune with one criterion, fine-tune and judge."""
        started = time.process_time()
        scores = self.scores(criteria()[name](self.seed, ratio))
        plan = taskprune.solve(self.groups, scores, Budget.from_ratio(ratio))
        model = self.pruned(plan)
        if steps:
            self.fine_tune(model, steps, ratio)
        return {
            **identity(name, ratio, self.seed, steps, self.args.frames),
            "removed": {cost: 1 - after / first for cost, (first, after) in plan.costs.items()},
            "kept": self.kept(plan),
            "points": self.judge(model),
            "seconds": time.process_time() - started,
        }

    def pruned(self, plan: PruningPlan) -> Any:
        """Carry out a plan."""
        if not self.args.compensate:
            return taskprune.apply_plan(self.net, plan, verify=False)
        with flushed_denormals():
            return taskprune.compensate(
                self.net, plan, self.calibration, tasks=self.tasks, forward=fusion_forward
            ).model

    def scores(self, importance: Importance) -> ChannelScores:
        """Return what a criterion says; equal criteria are asked once."""
        if importance not in self._scores:
            with flushed_denormals():
                self._scores[importance] = taskprune.score(
                    self.net,
                    self.groups,
                    self.tasks,
                    self.calibration,
                    importance=importance,
                    forward=fusion_forward,
                )
        return self._scores[importance]

    def kept(self, plan: PruningPlan) -> dict[str, float]:
        """Return the share of the channels that stays, by modality."""
        whole, gone = Counter[str](), Counter[str]()
        for group in self.groups:
            whole[self.labels[group.name]] += group.n_channels
            gone[self.labels[group.name]] += len(plan.drop.get(group.name, ()))
        return {label: 1 - gone[label] / count for label, count in whole.items()}

    def judge(self, model: Any) -> Judged:
        """Return what the model is worth on unseen frames, in points."""
        found: Judged = {}
        grid = self.net.config.grid
        for condition in CONDITIONS:
            boxes, ground = BoxMetric(grid), GroundMetric()
            with evaluating(model), no_grad(), flushed_denormals():
                for batch in validation(condition, self.args.frames):
                    outputs = fusion_forward(model, batch)
                    boxes.update(outputs, batch)
                    ground.update(outputs, batch)
            summary = boxes.summary()
            above, space = 100 * summary["map_bev"], 100 * summary["map_3d"]
            found[condition] = {
                "AP": (above + space) / 2,
                "AP from above": above,
                "AP in space": space,
                "IoU": 100 * ground.compute(),
            }
        return found

    def fine_tune(self, model: Any, steps: int, ratio: float) -> None:
        """Train on the labels alone; distillation is another benchmark's question."""
        with flushed_denormals():
            taskprune.distill(
                model,
                teacher=self.net,
                tasks=self.tasks,
                data=tuning(self.seed, self.args.steps),
                taps=(),
                forward=fusion_forward,
                settings=DistillSettings(
                    steps=steps,
                    seed=self.seed,
                    feature_weight=0.0,
                    learning_rate=learning_rate(ratio),
                    ema_decay=AVERAGE_DECAY,
                    # Statistics of batches take away much of what a good choice of channels kept.
                    frozen_batchnorm=True,
                ),
            )


def identity(name: str | None, ratio: float, seed: int, steps: int, frames: int) -> Cell:
    return {"criterion": name, "ratio": ratio, "seed": seed, "steps": steps, "frames": frames}


def run(args: argparse.Namespace) -> tuple[Judged, list[Cell]]:
    """Compute the cells that are missing; return the unpruned network's figures and all cells."""
    cells = Cells(_name(args), args.cells)
    keys = [
        identity(name, ratio, seed, steps, args.frames)
        for steps in dict.fromkeys((0, args.steps))
        for ratio in args.ratios
        for seed in args.seeds
        for name in args.criteria
    ]
    missing = [key for key in keys if not cells.has(key)]
    print(f"{len(missing)} of {len(keys)} cells are missing.")
    whole = identity(None, 0.0, args.seeds[0], 0, args.frames)

    @cache
    def bench_of(seed: int) -> Bench:
        return Bench(seed, args)

    if not cells.has(whole):
        bench = bench_of(args.seeds[0])
        cells.append({**whole, "points": bench.judge(bench.net)})
    if missing:
        _say_how_long(bench_of(missing[0]["seed"]), missing)
    for key in missing:
        cell = bench_of(key["seed"]).cell(key["criterion"], key["ratio"], key["steps"])
        cells.append(cell)
        print(_line(cell), flush=True)
    unpruned: Judged = cells.matching(whole)[0]["points"]
    return unpruned, [cells.matching(key)[0] for key in keys]


def _name(args: argparse.Namespace) -> str:
    return "modality_compensated" if args.compensate else "modality"


def _say_how_long(bench: Bench, missing: Sequence[Mapping[str, Any]]) -> None:
    """Time the unpruned network, which is slower than every cell's."""
    model, step_s = copy.deepcopy(bench.net), 0.0
    if bench.args.steps:
        tuning(bench.seed, bench.args.steps)
        started = time.process_time()
        bench.fine_tune(model, 2, ratio=0.5)
        step_s = (time.process_time() - started) / 2
    started = time.process_time()
    bench.judge(model)
    judging_s = time.process_time() - started
    total = sum(key["steps"] * step_s + judging_s for key in missing)
    print(f"  a step: {step_s:.2f} s; judging: {judging_s:.1f} s")
    print(f"Expected: at most {total / 60:.0f} minutes, and scoring once per seed.", flush=True)


def _line(cell: Mapping[str, Any]) -> str:
    points = ", ".join(f"{condition} {v['AP']:.1f}" for condition, v in cell["points"].items())
    return (
        f"−{100 * cell['ratio']:.0f} %, seed {cell['seed']}, {cell['criterion']}, "
        f"{cell['steps']} steps: {points} ({cell['seconds']:.0f} s)"
    )


def rows(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average over seeds: a row per share removed and criterion."""
    grouped: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        grouped.setdefault((cell["ratio"], cell["criterion"]), []).append(cell)
    found = []
    for (ratio, criterion), group in sorted(grouped.items(), key=lambda item: item[0][0]):
        row: dict[str, Any] = {"ratio": ratio, "criterion": criterion}
        for figure in ("removed", "kept"):
            row[figure] = {
                name: statistics.fmean(cell[figure][name] for cell in group)
                for name in group[0][figure]
            }
        for when, tuned in (("before", False), ("after", True)):
            own = [cell["points"] for cell in group if bool(cell["steps"]) == tuned]
            row[when] = {
                condition: {
                    metric: _mean_and_spread([points[condition][metric] for points in own])
                    for metric in metrics
                }
                for points in own[:1]
                for condition, metrics in points.items()
            }
        found.append(row)
    return found


def duels(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Set each criterion that looks across modalities against each that does not, by seed."""
    found = []
    grouped: dict[tuple[float, int], dict[tuple[str, int], Judged]] = {}
    for cell in cells:
        own = grouped.setdefault((cell["ratio"], cell["steps"]), {})
        own[cell["criterion"], cell["seed"]] = cell["points"]
    for (ratio, steps), points in sorted(grouped.items()):
        names = list(dict.fromkeys(name for name, _ in points))
        seeds = list(dict.fromkeys(seed for _, seed in points))
        for across in (name for name in names if name in ACROSS):
            for other in (name for name in names if name not in (*ACROSS, PUBLISHED, CONTRIBUTION)):
                row: dict[str, Any] = {"ratio": ratio, "steps": steps}
                row |= {"criterion": across, "against": other}
                for condition in next(iter(points.values())):
                    row[condition] = _mean_and_spread(
                        [
                            points[across, seed][condition]["AP"]
                            - points[other, seed][condition]["AP"]
                            for seed in seeds
                        ]
                    )
                found.append(row)
    return found


def _mean_and_spread(values: Sequence[float]) -> list[float | None]:
    return [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None]


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as strings."""
    found = {"removed": f"{100 * row['ratio']:.0f} %", "criterion": row["criterion"]}
    for when in ("before", "after"):
        for condition, metrics in row[when].items():
            mean, spread = metrics["AP"]
            found[f"{condition} {when}"] = f"{mean:.1f}" + (f" ± {spread:.1f}" if spread else "")
    found["kept"] = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row["kept"].items())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--criteria", nargs="+", default=list(criteria()), choices=list(criteria()))
    parser.add_argument("--steps", type=int, default=40, help="of fine-tuning, 4 frames each")
    parser.add_argument("--compensate", action="store_true", help="re-weight what reads channels")
    parser.add_argument("--frames", type=int, default=32, help="unseen frames to judge on")
    parser.add_argument("--cells", type=Path, default=RESULTS / "cells", help="folder of the cells")
    parser.add_argument("--trial", action="store_true", help="write no results, draw no plot")
    args = parser.parse_args()
    unpruned, cells = run(args)
    table = rows(cells)
    print(f"unpruned: {unpruned}")
    show("AP", [shown(row) for row in table])
    if args.trial:
        return
    settings = {
        "seeds": args.seeds,
        "steps": args.steps,
        "frames": args.frames,
        "calibration frames": BATCH_SIZE * CALIBRATION_BATCHES,
    }
    content = {"settings": settings, "teacher": unpruned, "rows": table, "duels": duels(cells)}
    record(_name(args), content)
    from modality_plot import draw  # Matplotlib, an extra

    draw(content, IMAGES / f"{_name(args)}.png")


if __name__ == "__main__":
    main()
