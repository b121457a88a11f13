"""How much of the drop does each way of fine-tuning bring back, with the same steps and batches?

    python benchmarks/distillation.py                          # generated scenes
    python benchmarks/distillation.py --data ROOT              # and a data set in BDD100K's layout
    python benchmarks/distillation.py --data ROOT --finished   # only the tables
    python benchmarks/distillation.py --seeds 0 --steps 20 --arms "plain fine-tuning"

The bundled teacher (fine-tuned on a data set's train split first, as ``taskprune demo`` does) loses
32.7 % of its parameters. From then on every arm starts from the same network, sees the same batches
in the same order and makes the same number of steps; the last arm trains fresh random weights in
the pruned shapes. The learning rate of each arm is in ``arms()``. A seed draws the calibration
images, the order of the training images and their augmentation.

On a data set the default and plain fine-tuning make a longer run as well, since real images take
longer to come back.

"Recovered" is (arm - pruned) / (teacher - pruned) per task, on unseen images. Cells are kept in
``benchmarks/results/cells/distillation.jsonl`` as they finish, with the commit that measured them.
The file is committed: a run that was stopped goes on, in another checkout as well. Cells of a
``--trial`` stay under ``runs/``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import Cells
from distillation_subjects import RUNS, Images, image_sets
from protocol import record, show
from torch import nn

import taskprune
from taskprune.distillation import (
    DistillSettings,
    OnOutputs,
    OutputLoss,
    StepRecord,
    logit_kl,
    measure,
    query_matching,
)
from taskprune.driving.nets import FEATURE_MODULES, PanopticDrivingNet
from taskprune.driving.tasks import driving_tasks, forward
from taskprune.driving.training import TrainSettings
from taskprune.restore import flushed_denormals

RATIO = 0.327
ROUND_TO = 16
"""As in ``taskprune demo``."""

PRUNED = "pruned"
DEFAULT = "features, index-aligned (default)"
PLAIN = "plain fine-tuning"
LEAST_DROP = 0.5
"""Points; of a smaller drop a share would be noise, and none is given."""


@dataclass(frozen=True)
class Arm:
    """One way to train: what it differs in, all else being equal."""

    feature_weight: float = 0.0
    aligned: bool = True
    fresh: bool = False
    learning_rate: float = 3e-4
    output_losses: Mapping[str, OutputLoss] = field(default_factory=dict)


def arms() -> dict[str, Arm]:
    """Return the arms by the name of their row."""
    masks = partial(logit_kl, dim=None)
    outputs = {
        "detection": OnOutputs(_queries, query_matching),
        "drivable": OnOutputs(lambda out: out["drivable"], masks),
        "lane": OnOutputs(lambda out: out["lane"], masks),
    }
    return {
        DEFAULT: Arm(feature_weight=1.0),
        "features, 1×1 adapters": Arm(feature_weight=1.0, aligned=False),
        PLAIN: Arm(),
        "logit KD": Arm(output_losses=outputs),
        # Random weights learn at the rate that the teacher itself was trained with.
        "small net from scratch": Arm(fresh=True, learning_rate=TrainSettings.lr),
    }


def _queries(outputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return outputs["detection"]["logits"], outputs["detection"]["boxes"]


class Bench:
    """A teacher pruned once for all arms of a seed."""

    def __init__(self, images: Images, seed: int, args: argparse.Namespace) -> None:
        self.images, self.seed, self.args = images, seed, args
        self.teacher: PanopticDrivingNet = images.teacher()
        self.validation = images.validation(args.images)
        self.training = images.training(seed, args.steps or images.steps)
        started = time.perf_counter()
        self.reference = self.judge(self.teacher)
        self.judging_s = time.perf_counter() - started
        pruned = taskprune.prune(
            self.teacher,
            driving_tasks(),
            RATIO,
            data=images.calibration(seed),
            forward=forward,
            safety=taskprune.Safety(round_to=ROUND_TO),
        )
        self.student, self.plan = pruned.model, pruned.plan
        self.removed = {c: 1 - after / before for c, (before, after) in self.plan.costs.items()}
        self.start = self.judge(self.student)

    def judge(self, model: nn.Module) -> dict[str, float]:
        """Return every task's metric on unseen images, in points."""
        with flushed_denormals():
            found = measure(model, driving_tasks(), self.validation, forward=forward)
        return {task: 100 * value for task, value in found.items()}

    def cell(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Train one arm as many steps as the key says and judge it."""
        started = time.perf_counter()
        points = self.start
        if key["arm"] != PRUNED:
            points = self.judge(self.trained(arms()[key["arm"]], key["steps"]))
        return {
            **key,
            "removed": self.removed,
            "teacher": self.reference,
            "pruned": self.start,
            "points": points,
            "seconds": time.perf_counter() - started,
        }

    def trained(self, arm: Arm, steps: int, callbacks: tuple[Any, ...] = ()) -> nn.Module:
        """Return the arm's network after training."""
        student = self._fresh() if arm.fresh else copy.deepcopy(self.student)
        with flushed_denormals():
            return taskprune.distill(
                student,
                teacher=self.teacher,
                tasks=driving_tasks(),
                data=self.training,
                plan=self.plan if arm.aligned else None,
                taps=FEATURE_MODULES if arm.feature_weight else (),
                forward=forward,
                settings=DistillSettings(
                    steps=steps,
                    seed=self.seed,
                    learning_rate=arm.learning_rate,
                    feature_weight=arm.feature_weight,
                    output_losses=arm.output_losses,
                    callbacks=callbacks,
                ),
            )

    def _fresh(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            classes = self.teacher.detection.num_classes
            net = PanopticDrivingNet(self.teacher.config, num_classes=classes)
        return taskprune.apply_plan(net, self.plan, verify=False)

    def step_seconds(self, arm: Arm) -> float:
        """Time a step, the first being left out."""
        ends: list[float] = []

        def mark(_record: StepRecord, _student: nn.Module) -> None:
            ends.append(time.perf_counter())

        self.trained(arm, 2, (mark,))
        return ends[1] - ends[0]


def runs(images: Images, args: argparse.Namespace) -> list[tuple[str, int]]:
    """Return the arms to run and how many steps each makes."""
    found = [(PRUNED, 0), *((arm, args.steps or images.steps) for arm in args.arms)]
    if images.longer and not args.steps:
        found += [(arm, images.longer) for arm in (DEFAULT, PLAIN) if arm in args.arms]
    return found


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Compute the cells that are missing and return all that were asked for.

    With ``--finished`` nothing is computed, and arms that lack a seed are left out.
    """
    cells = Cells("distillation", RUNS) if args.trial else Cells("distillation")
    keys = [
        (
            images,
            seed,
            {"on": images.name, "arm": arm, "seed": seed, "images": args.images, "steps": steps},
        )
        for images in image_sets(args.data)
        for seed in args.seeds
        for arm, steps in runs(images, args)
    ]
    missing = [key for key in keys if not cells.has(key[2])]
    if args.finished:
        lacking = [(key["on"], key["arm"], key["steps"]) for *_, key in missing]
        keys = [k for k in keys if (k[2]["on"], k[2]["arm"], k[2]["steps"]) not in lacking]
        return [cells.matching(key)[0] for *_, key in keys]
    print(f"{len(missing)} of {len(keys)} cells are missing.")
    bench: Bench | None = None
    for number, (images, seed, key) in enumerate(missing):
        if bench is None or (bench.images.name, bench.seed) != (images.name, seed):
            bench = Bench(images, seed, args)
        if number == 0:
            _say_how_long(bench, [key for *_, key in missing])
        cell = bench.cell(key)
        cells.append(cell)
        print(_line(cell))
    return [cells.matching(key)[0] for *_, key in keys]


def _say_how_long(bench: Bench, keys: Iterable[Mapping[str, Any]]) -> None:
    trained = [(key["arm"], key["steps"]) for key in keys if key["arm"] != PRUNED]
    a_step = {name: bench.step_seconds(arms()[name]) for name in dict(trained)}
    total = sum(steps * a_step[name] + bench.judging_s for name, steps in trained)
    for name, seconds in a_step.items():
        print(f"  a step of {name}: {seconds:.2f} s")
    print(f"Expected: {total / 60:.0f} minutes, and pruning once per seed.")


def _line(cell: Mapping[str, Any]) -> str:
    points = "  ".join(f"{task} {value:.1f}" for task, value in cell["points"].items())
    run = f"{cell['on']}, seed {cell['seed']}, {cell['arm']}, {cell['steps']} steps"
    return f"{run}: {points} ({cell['seconds']:.0f} s)"


def recovered(cell: Mapping[str, Any], task: str) -> float | None:
    """Return the share of a task's drop that came back, in %; ``None`` for a drop too small."""
    drop = cell["teacher"][task] - cell["pruned"][task]
    if drop < LEAST_DROP:
        return None
    return float(100 * (cell["points"][task] - cell["pruned"][task]) / drop)


def rows(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average over seeds: a row per set of images, arm and number of steps."""
    grouped: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for cell in cells:
        grouped.setdefault((cell["on"], cell["arm"], cell["steps"]), []).append(cell)
    found = []
    for (on, arm, steps), group in grouped.items():
        tasks = list(group[0]["points"])

        def over_seeds(
            figure: Callable[[Mapping[str, Any], str], float | None],
            tasks: list[str] = tasks,
            group: list[Mapping[str, Any]] = group,
        ) -> dict[str, list[float | None]]:
            return {
                task: _mean_and_spread([figure(cell, task) for cell in group]) for task in tasks
            }

        row: dict[str, Any] = {"on": on, "arm": arm, "seeds": len(group)}
        row["steps"] = steps
        row["points"] = over_seeds(lambda cell, task: cell["points"][task])
        row["change"] = over_seeds(lambda cell, task: cell["points"][task] - cell["teacher"][task])
        row["recovered"] = {} if arm == PRUNED else over_seeds(recovered)
        found.append(row)
    return found


def _mean_and_spread(values: Sequence[float | None]) -> list[float | None]:
    """Return mean and standard deviation; nothing where a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return [None, None]
    return [statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None]


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as strings."""
    found = {"arm": row["arm"], "steps": row["steps"], "seeds": row["seeds"]}
    for task, (change, _) in row["change"].items():
        share, spread = row["recovered"].get(task, (None, None))
        found[f"{task}: change"] = f"{change:+.1f}"
        found[f"{task}: recovered %"] = (
            "–" if share is None else f"{share:.0f}" + (f" ± {spread:.0f}" if spread else "")
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a data set in BDD100K's layout, as well")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, help="of 8 images (default: as many as suit the images)"
    )
    parser.add_argument("--arms", nargs="+", default=list(arms()), choices=list(arms()))
    parser.add_argument("--images", type=int, default=160, help="unseen images to judge on")
    parser.add_argument("--finished", action="store_true", help="tabulate, compute nothing")
    parser.add_argument("--trial", action="store_true", help="keep cells apart, write no results")
    args = parser.parse_args()
    table = rows(run(args))
    for on in dict.fromkeys(row["on"] for row in table):
        show(f"On {on}", [shown(row) for row in table if row["on"] == on])
    if args.trial:
        return
    settings = {"seeds": args.seeds, "images": args.images, "ratio": RATIO}
    record("distillation", {"settings": settings, "arms": table})


if __name__ == "__main__":
    main()
