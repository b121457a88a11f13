"""Do promises hold as often as they say, and how often is a safe model promised?

    python benchmarks/promise.py                    # planted losses, minutes on a core
    python benchmarks/promise.py --scenes 600       # and the points of benchmarks/frontier.py

Each resampling draws held-out samples and tests the models of a curve in order, as
``Frontier.pick`` does. The truth is known: planted losses have a mean of their own, and of
generated scenes a pool stands for all there are, drawn from with replacement. A resampling is
*wrong* if it promises any model of which a task loses more than its tolerance in truth; at most 5 %
may be. *By the measured mean* is what picking without a promise does: the smallest model whose
tasks lost no more than they may on the same samples, wrong if that one does lose more. Beside the
bound that promises are made by, the same tests are made with a normal bound, which holds for many
samples without outliers, and with the empirical Bernstein bound, which always holds.

Planted are twelve models and two tasks. *Near*: growing losses that differ little between samples.
*Rare*: growing losses, all of one sample or nothing. *At the limit*: every other model loses just
more than the tolerance, the hardest case for a promise to be right. *Very rare*: a tolerance of
0.005, which one sample in two hundred uses up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from protocol import record, show
from rich.progress import track
from torch import Tensor, nn

from taskprune.errors import ToleranceError
from taskprune.promise import OverImages, PerSample
from taskprune.promise.promising import promised

CONFIDENCE = 0.95
RESAMPLINGS = 200
MODELS = 12
TOLERANCE = 0.02
VERY_RARE = 0.005
FOUND = 0.9
"""The part of the boxes that the original finds, where boxes are planted."""

SAMPLES = (200, 500, 2000)
IMAGES = (500, 2000)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """Scores of one task on the same samples.

    Attributes:
        before: Of the original. Shape ``[n]``.
        after: Of each model, the largest first. Shape ``[models, n]``.
    """

    before: FloatArray
    after: FloatArray

    @property
    def lost(self) -> FloatArray:
        """What each model lost on average. Shape ``[models]``."""
        lost: FloatArray = np.nanmean(self.before - self.after, axis=1)
        return lost


@dataclass(frozen=True)
class World:
    """Data without end.

    Attributes:
        draw: ``(generator, n) -> {task: scores of n samples}``.
        lost: What each model loses in truth, by task. Shape ``[models]``.
        tolerances: By task.
    """

    draw: Callable[[np.random.Generator, int], Mapping[str, Drawn]]
    lost: Mapping[str, FloatArray]
    tolerances: Mapping[str, float]

    @property
    def is_safe(self) -> NDArray[np.bool_]:
        """Whether each model keeps to every tolerance in truth. Shape ``[models]``."""
        return holds(self.lost, self.tolerances)


def holds(lost: Mapping[str, FloatArray], tolerances: Mapping[str, float]) -> NDArray[np.bool_]:
    """Return whether each model lost no more than it may of every task."""
    kept: NDArray[np.bool_] = np.all([lost[t] <= most for t, most in tolerances.items()], axis=0)
    return kept


def planted() -> dict[str, World]:
    """Return worlds whose truth is known by the way they are made."""
    growing = np.linspace(0.001, 0.04, MODELS)
    return {
        "planted, near": near(growing, TOLERANCE),
        "planted, rare": rare(growing, TOLERANCE),
        "planted, near, at the limit": near(_at_limit(TOLERANCE), TOLERANCE),
        "planted, rare, at the limit": rare(_at_limit(TOLERANCE), TOLERANCE),
        "planted, very rare, at the limit": rare(_at_limit(VERY_RARE), VERY_RARE),
    }


def _at_limit(tolerance: float) -> FloatArray:
    return np.where(np.arange(MODELS) % 2 == 0, tolerance / 10, 1.001 * tolerance)


def near(lost: FloatArray, tolerance: float) -> World:
    """Return a world in which samples lose about the same."""

    def draw(generator: np.random.Generator, n: int) -> dict[str, Drawn]:
        noise = generator.uniform(-0.1, 0.1, (MODELS, n))
        whole = np.full(n, 0.8)
        return {
            "lane": Drawn(whole, whole - lost[:, None] - noise),
            "drivable": Drawn(whole, whole - lost[:, None] / 2 + noise),
        }

    return World(draw, *_two_tasks(lost, tolerance))


def rare(lost: FloatArray, tolerance: float) -> World:
    """Return a world in which a sample loses all or nothing."""

    def draw(generator: np.random.Generator, n: int) -> dict[str, Drawn]:
        luck, whole = generator.random((MODELS, n)), np.ones(n)
        return {
            "lane": Drawn(whole, (luck >= lost[:, None]).astype(np.float64)),
            "drivable": Drawn(whole, (luck >= lost[:, None] / 2).astype(np.float64)),
        }

    return World(draw, *_two_tasks(lost, tolerance))


def _two_tasks(
    lost: FloatArray, tolerance: float
) -> tuple[dict[str, FloatArray], dict[str, float]]:
    tasks = {"lane": lost, "drivable": lost / 2}
    return tasks, dict.fromkeys(tasks, tolerance)


def of_pool(pool: Mapping[str, Drawn]) -> World:
    """Return the world of which a pool of scored samples is all there is."""

    def draw(generator: np.random.Generator, n: int) -> dict[str, Drawn]:
        size = len(next(iter(pool.values())).before)
        chosen = generator.integers(size, size=n)
        return {task: Drawn(own.before[chosen], own.after[:, chosen]) for task, own in pool.items()}

    lost = {task: own.lost for task, own in pool.items()}
    return World(draw, lost, dict.fromkeys(pool, TOLERANCE))


_TEACHER = -1


class _Model(nn.Module):
    """Stands for a model whose scores on the samples are known."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.nothing = nn.Parameter(torch.zeros(()))


def n_promised(drawn: Mapping[str, Drawn], tolerances: Mapping[str, float]) -> int:
    """Return how many models are promised, from the first on; the last of them would be picked."""

    def scores(model: nn.Module, _batch: Any) -> dict[str, Tensor]:
        assert isinstance(model, _Model)
        number = model.number
        return {
            task: torch.from_numpy(own.before if number == _TEACHER else own.after[number])
            for task, own in drawn.items()
        }

    models = len(next(iter(drawn.values())).after)
    makes = [lambda number=number: _Model(number) for number in range(models)]
    samples = PerSample([torch.zeros(1)], scores)
    try:
        return len(promised(_Model(_TEACHER), makes, samples, tolerances, CONFIDENCE))
    except ToleranceError:
        return 0


def _up_to_failure(
    drawn: Mapping[str, Drawn],
    tolerances: Mapping[str, float],
    bound: Callable[[FloatArray], FloatArray],
) -> int:
    """Return how many models come before the first whose bound on a loss is above what it may be.

    Args:
        drawn: Scores.
        tolerances: By task.
        bound: Of losses ``[models, n]``, on the mean of each model.
    """
    bounds = {task: bound(own.before - own.after) for task, own in drawn.items()}
    passed = holds(bounds, tolerances)
    return len(passed) if passed.all() else int(np.argmin(passed))


def normal(losses: FloatArray) -> FloatArray:
    """Return the bound of large samples, as a t-test has it; what lies near a bootstrap's."""
    n = np.isfinite(losses).sum(axis=1)
    bound: FloatArray = np.nanmean(losses, axis=1) + NormalDist().inv_cdf(CONFIDENCE) * np.nanstd(
        losses, axis=1, ddof=1
    ) / np.sqrt(n)
    return bound


def bernstein(losses: FloatArray) -> FloatArray:
    """Return the empirical Bernstein bound of Maurer and Pontil, for losses within -1 to 1."""
    n = np.isfinite(losses).sum(axis=1)
    log = np.log(2 / (1 - CONFIDENCE))
    spread = np.sqrt(2 * np.nanvar(losses, axis=1, ddof=1) * log / n)
    bound: FloatArray = np.nanmean(losses, axis=1) + spread + 7 * 2 * log / (3 * (n - 1))
    return bound


def row(name: str, world: World, n: int, seed: int = 0) -> dict[str, Any]:
    """Resample one world."""
    generator = np.random.default_rng(seed)
    safe = world.is_safe
    in_order = len(safe) if safe.all() else int(np.argmin(safe))
    numbers: dict[str, list[int]] = {"betting": [], "normal": [], "Bernstein": []}
    unsure = []
    for _ in range(RESAMPLINGS):
        drawn = world.draw(generator, n)
        numbers["betting"].append(n_promised(drawn, world.tolerances))
        numbers["normal"].append(_up_to_failure(drawn, world.tolerances, normal))
        numbers["Bernstein"].append(_up_to_failure(drawn, world.tolerances, bernstein))
        seemed = np.flatnonzero(holds({t: d.lost for t, d in drawn.items()}, world.tolerances))
        unsure.append(len(seemed) > 0 and not safe[seemed[-1]])
    found: dict[str, Any] = {
        "world": name,
        "samples": n,
        "safe models in order": in_order,
        "wrong by the measured mean %": _percent(unsure),
        "any promised %": _percent(number > 0 for number in numbers["betting"]),
    }
    for bound, own in numbers.items():
        found[f"{bound}, wrong %"] = _percent(number > in_order for number in own)
        found[f"{bound}, safe promised"] = float(np.mean([min(k, in_order) for k in own]))
    return found


def _percent(found: Any) -> float:
    return 100 * float(np.mean([bool(each) for each in found]))


def bootstrap_row(n: int, seed: int = 0) -> dict[str, Any]:
    """Resample images of which a metric is no mean: boxes found over all boxes.

    The first model finds all that the original does, the second nothing in some images, so that it
    loses just more than it may.
    """
    generator = np.random.default_rng(seed)
    failing = 1.001 * TOLERANCE / FOUND
    numbers = []
    for _ in track(range(RESAMPLINGS), f"bootstrap, {n} images"):
        boxes = 1 + generator.poisson(4, n)
        whole = generator.binomial(boxes, FOUND)
        found = {_TEACHER: whole, 0: whole, 1: np.where(generator.random(n) < failing, 0, whole)}

        def measure(
            model: nn.Module, found: Mapping[int, Any] = found, boxes: Any = boxes
        ) -> Callable[[NDArray[np.int64]], float]:
            assert isinstance(model, _Model)
            own = found[model.number]
            return lambda chosen: float(own[chosen].sum() / boxes[chosen].sum())

        makes = [lambda number=number: _Model(number) for number in (0, 1)]
        images = OverImages("detection", n, measure)
        limits = {"detection": TOLERANCE}
        numbers.append(len(promised(_Model(_TEACHER), makes, images, limits, CONFIDENCE)))
    return {
        "images": n,
        "wrong %": _percent(number > 1 for number in numbers),
        "safe promised %": _percent(number > 0 for number in numbers),
    }


def tabulated(worlds: Mapping[str, World], counts: Sequence[int]) -> list[dict[str, Any]]:
    return [
        row(name, world, n)
        for name, world in track(worlds.items(), "promise", total=len(worlds))
        for n in counts
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=0, help="scenes in the pool; 0 for none")
    parser.add_argument("--folder", type=Path, default=Path("runs/frontier/output_change_64"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    worlds = planted()
    if args.scenes:
        from promise_scenes import pool  # the net and its scenes

        drawn = {t: Drawn(*own) for t, own in pool(args.scenes, args.folder).items()}
        worlds[f"driving n, {args.scenes} scenes"] = of_pool(drawn)
    rows = tabulated(worlds, SAMPLES)
    show(f"{RESAMPLINGS} resamplings, {100 * CONFIDENCE:g} % confidence", rows)
    settings = {
        "resamplings": RESAMPLINGS,
        "confidence": CONFIDENCE,
        "tolerances": [TOLERANCE, VERY_RARE],
        "scenes": args.scenes,
    }
    bootstrap = [bootstrap_row(n) for n in IMAGES]
    show("A metric over images, by the bootstrap", bootstrap)
    record("promise", {"settings": settings, "rows": rows, "bootstrap": bootstrap})


if __name__ == "__main__":
    main()
