"""What do budgets save in measured time? The bundled `l` net, parameters alone and with compute.

The segmentation decoder has 0.4 % of the parameters and almost half of the compute: a bound on the
parameters alone need not touch it. Weights are random, channels are ranked by magnitude.

    python benchmarks/latency.py [--macs 0.55 0.45] [--height 128 --width 192]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from protocol import record, show

from taskprune.budget import Budget
from taskprune.cost import measure_latency
from taskprune.coupling import couple
from taskprune.driving.nets import build_net
from taskprune.graph import trace
from taskprune.importance import importance_by_name, score
from taskprune.rewrite import apply_plan
from taskprune.safety import Safety
from taskprune.solver import solve

PARAMS = 0.673


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    net = build_net("l").eval()
    image = torch.randn(1, 3, args.height, args.width)
    groups = couple(trace(net, (image,)))
    scores = score(net, groups, {}, (), importance=importance_by_name("magnitude"))
    budgets = (Budget(params=PARAMS), *(Budget(params=PARAMS, macs=m) for m in args.macs))
    plans = {str(budget): solve(groups, scores, budget) for budget in budgets}
    models = {"original": net} | {name: apply_plan(net, plan) for name, plan in plans.items()}
    # All take turns, so that whatever slows the machine down slows every one of them.
    times = measure_latency(models, (image,), repeats=args.repeats, warmup=2)
    found: list[dict[str, Any]] = []
    for name, time in times.items():
        row: dict[str, Any] = {"model": name}
        for cost in ("params", "macs"):
            before, after = plans[name].costs[cost] if name in plans else (1, 1)
            row[f"{cost} removed %"] = 100 * (1 - after / before)
        row |= {"median ms": time.median_ms, "lower": time.lower_ms, "upper": time.upper_ms}
        row["times faster"] = times["original"].median_ms / time.median_ms
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--macs", type=float, nargs="+", default=[0.55, 0.45])
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = rows(args)
    show("The l net on a CPU", found)
    record("latency", {"settings": vars(args) | {"safety": str(Safety())}, "rows": found})


if __name__ == "__main__":
    main()
