"""How good and how fast is the solver? Against exhaustive search, and on up to a million channels.

    python benchmarks/solver.py [--instances 200] [--channels 10000 100000 1000000]

Small instances have at most 12 channels that could go and one or two bounds; the gap is how much
more score the plan gives up than the best choice, as a share of all scores.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import numpy as np
from protocol import record, show
from synthetic_groups import chain, dropped_score, random_scores

from taskprune.cost import CostModel
from taskprune.errors import InfeasibleBudgetError
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety

FREE = Safety(min_channels=1, max_removed=1.0, max_removed_private=1.0, protected_quantile=1.0)


def gap(budget: Budget, seed: int) -> float | None:
    """Return how much more score is given up than needed; ``None`` where nothing can be met."""
    rng = np.random.default_rng(seed)
    groups = chain(rng.integers(3, 5, size=3).tolist(), [16, 4, 1], kernel=1, outputs=2)
    scores = random_scores(groups, seed)
    models = {"params": CostModel.of_params(groups), "macs": CostModel.of_macs(groups)}
    limits = budget.limits({name: model.value() for name, model in models.items()})
    sums = [np.sort(own.total.numpy()).cumsum() for own in scores.groups.values()]
    lost = [np.concatenate([[0], own]) for own in sums]
    best = min(
        (
            sum(own[len(own) - 1 - k] for own, k in zip(lost, kept, strict=True))
            for kept in itertools.product(*(range(1, g.n_channels + 1) for g in groups))
            if all(models[n].value(np.array(kept)) <= limit for n, limit in limits.items())
        ),
        default=None,
    )
    try:
        plan = solve(groups, scores, budget, safety=FREE)
    except InfeasibleBudgetError:
        assert best is None
        return None
    assert best is not None
    return float((dropped_score(plan, scores) - best) / sum(own[-1] for own in lost))


def small(n_instances: int) -> list[dict[str, Any]]:
    rows = []
    for budget in (Budget(params=0.6), Budget(macs=0.6), Budget(params=0.6, macs=0.5)):
        gaps = [g for seed in range(n_instances) if (g := gap(budget, seed)) is not None]
        quantiles = np.quantile(gaps, [0.5, 0.9, 0.99])
        rows.append(
            {
                "budget": str(budget),
                "instances": len(gaps),
                "optimal %": 100 * float(np.mean(np.array(gaps) < 1e-9)),
                "median gap %": 100 * float(quantiles[0]),
                "90 % quantile": 100 * float(quantiles[1]),
                "99 % quantile": 100 * float(quantiles[2]),
            }
        )
    return rows


def large(n_channels: int) -> list[dict[str, Any]]:
    n_groups = max(10, n_channels // 1000)
    groups = chain(
        [n_channels // n_groups] * n_groups, [1 + 1000 // (i + 1) for i in range(n_groups)]
    )
    scores = random_scores(groups)
    rows = []
    for budget in (Budget(params=0.6), Budget(macs=0.6), Budget(params=0.6, macs=0.45)):
        start = time.perf_counter()
        plan = solve(groups, scores, budget)
        row: dict[str, Any] = {"channels": n_channels, "budget": str(budget)}
        row["seconds"] = time.perf_counter() - start
        for name, (before, after) in plan.costs.items():
            row[f"{name} left %"] = 100 * after / before
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--channels", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    args = parser.parse_args()
    exact = small(args.instances)
    show("Against exhaustive search", exact)
    speed = [row for n in args.channels for row in large(n)]
    show("Time to solve", speed)
    record("solver", {"exhaustive": exact, "speed": speed})


if __name__ == "__main__":
    main()
