"""What do budgets save in measured time, and how well is that predicted?

The segmentation decoder of the bundled `l` net has 0.4 % of the parameters and almost half of the
compute: a bound on the parameters alone need not touch it. Bounds on multiply-adds or on the
latency do. Then the predicted latency of the `n` net and of torchvision's resnet18 beside the
measured one, at several bounds and by what will run it. Weights are random, channels are ranked by
magnitude. Rows of other nets and runtimes stay in the file, so a quiet machine is needed for a few
minutes at a time only.

    python benchmarks/latency.py [--nets n resnet18 l] [--runtime eager] [--macs 0.55 0.45]
                                 [--latency 0.6] [--height 128 --width 192]
                                 [--fractions 0.9 0.8 0.7] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from typing import Any, get_args

import torch
from architectures.torchvision_import import import_torchvision
from protocol import RESULTS, record, show
from torch import Tensor, nn

from taskprune.calling.forward import call_inputs
from taskprune.cost import LatencyCost, measure_latency
from taskprune.coupling import CouplingGroups, couple
from taskprune.deployment.latency import ModelTimer, landed, measured_cost
from taskprune.deployment.runtimes import Runtime, in_runtime, running
from taskprune.driving.nets import build_net
from taskprune.errors import InfeasibleBudgetError
from taskprune.graph import trace
from taskprune.importance import ChannelScores, importance_by_name, score
from taskprune.plan.plan import PruningPlan
from taskprune.rewrite import apply_plan
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety

PARAMS = 0.673


def plans_for(
    net: nn.Module, image: Tensor, budgets: list[Budget], runtime: Runtime = "eager"
) -> dict[str, PruningPlan]:
    """Solve each budget that can be met, as `prune` does: once, and again with what that taught."""
    groups = couple(trace(net, (image,)))
    scores = score(net, groups, {}, (), importance=importance_by_name("magnitude"))
    timer = ModelTimer((image,), runtime=runtime)
    cost = measured_cost(net, groups, timer)
    found = {str(b): solved(net, timer, groups, scores, b, cost) for b in budgets}
    return {name: plan for name, plan in found.items() if plan is not None}


def solved(
    net: nn.Module,
    timer: ModelTimer,
    groups: CouplingGroups,
    scores: ChannelScores,
    budget: Budget,
    cost: LatencyCost,
) -> PruningPlan | None:
    def plan(cost: LatencyCost) -> PruningPlan:
        return solve(groups, scores, budget, costs={"latency_ns": cost})

    try:
        return plan(cost) if budget.latency_ms is None else landed(cost, net, timer, plan)
    except InfeasibleBudgetError as error:
        print(f"{budget}: {error}")
        return None


def models_of(net: nn.Module, plans: Mapping[str, PruningPlan]) -> dict[str, nn.Module]:
    return {"original": net} | {name: apply_plan(net, plan) for name, plan in plans.items()}


def large_net(args: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    net = build_net("l").eval().to(args.device)
    image = torch.randn(1, 3, args.height, args.width, device=args.device)
    budgets = [
        Budget(params=PARAMS),
        *(Budget(params=PARAMS, macs=m) for m in args.macs),
        *(Budget(params=PARAMS, latency_ms=t) for t in args.latency),
    ]
    plans = plans_for(net, image, budgets)
    # All take turns, so that whatever slows the machine down slows every one of them.
    times = measure_latency(models_of(net, plans), (image,), repeats=args.repeats, warmup=2)
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


def predictions(name: str, net: nn.Module, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Predict, then measure `args.rounds` times, each the median of `args.repeats` passes."""
    net = net.eval().to(args.device)
    image = torch.randn(1, 3, args.height, args.width, device=args.device)
    budgets = [Budget(latency_ms=f) for f in args.fractions]
    plans = plans_for(net, image, budgets, args.runtime)
    models = {
        model: in_runtime(own, (image,), call_inputs, args.runtime)
        for model, own in models_of(net, plans).items()
    }
    with running(args.runtime, net):
        rounds = [
            measure_latency(models, (image,), repeats=args.repeats) for _ in range(args.rounds)
        ]
    found: list[dict[str, Any]] = []
    before, _ = next(iter(plans.values())).costs["latency_ns"]
    whole = statistics.median(one["original"].median_ms for one in rounds)
    for model, plan in plans.items():
        share = plan.costs["latency_ns"][1] / plan.costs["latency_ns"][0]
        times = [one[model].median_ms for one in rounds]
        # Of the original in the same rounds: minutes later a machine is some percent slower or
        # faster, which no prediction made before can know.
        predicted = share * whole
        found.append(
            {
                "net": name,
                "runtime": args.runtime,
                "budget": model,
                "original ms": whole,
                "original ms, when predicted": before / 1e6,
                "predicted ms": predicted,
                "measured ms": statistics.median(times),
                "lowest": min(times),
                "highest": max(times),
                "measured / predicted": statistics.median(times) / predicted,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--macs", type=float, nargs="*", default=[0.55, 0.45])
    parser.add_argument("--latency", type=float, nargs="*", default=[0.6])
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.9, 0.8, 0.7])
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runtime", default="eager", choices=get_args(Runtime))
    parser.add_argument("--nets", nargs="*", default=["n", "resnet18", "l"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    predicted: list[dict[str, Any]] = []
    if "n" in args.nets:
        predicted += predictions("n", build_net("n"), args)
    if "resnet18" in args.nets:
        predicted += predictions("resnet18", import_torchvision().models.resnet18(), args)
    if predicted:
        show("Predicted and measured latency", predicted)
    found = large_net(args) if "l" in args.nets else []
    if found:
        show("The l net", found)
    path = RESULTS / "latency.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    fresh = {(row["net"], row["runtime"]) for row in predicted}
    predicted += [
        row for row in known.get("predictions", ()) if (row["net"], row["runtime"]) not in fresh
    ]
    predicted.sort(key=lambda row: (row["net"], row["runtime"], -row["predicted ms"]))
    settings = vars(args) | {"safety": str(Safety())}
    found = found or known.get("rows", [])
    record("latency", {"settings": settings, "rows": found, "predictions": predicted})


if __name__ == "__main__":
    main()
