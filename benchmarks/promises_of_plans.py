"""What is promised of limits, budgets and plans."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from promised import Bundled, Guarantee
from protocol import RESULTS
from zoo import ZOO

import taskprune
from taskprune import Budget, PruneSettings, Safety, apply_plan, solve
from taskprune.calling import flatten_outputs
from taskprune.cost.measured import measure_macs, measure_params
from taskprune.coupling import couple
from taskprune.errors import InfeasibleBudgetError
from taskprune.graph import trace
from taskprune.importance import ChannelScores, score
from taskprune.solver.loss_budget import predicted_loss
from taskprune.solver.removable import channel_width


def guarantees_of_plans(net: Bundled) -> Iterator[Guarantee]:
    """Yield what is promised of plans."""
    scores = net.scores()
    yield from _limits(net, scores)
    yield from _budgets(net, scores)
    yield from _zoo()
    yield from _tasks(net)
    yield from _recorded()


def _limits(net: Bundled, scores: ChannelScores) -> Iterator[Guarantee]:
    safety = Safety()
    plan = net.plan(0.5, scores)
    kept = [(d.n_kept, d.n_channels) for d in plan.groups]
    # A channel of several positions, such as an attention head, counts as many.
    widths = {group.name: channel_width(group) for group in net.groups}
    least = min(
        d.n_kept * widths[d.name] / min(d.n_channels * widths[d.name], safety.min_channels)
        for d in plan.groups
    )
    yield Guarantee.above("positions kept in any group, over the least allowed", least, 1.0)
    share = max(1 - n_kept / n for n_kept, n in kept)
    yield Guarantee.below("largest share of a group that went", share, safety.max_removed)
    gone = 0
    for row, task in enumerate(scores.tasks):
        reached = [g for g in net.groups if task in g.tasks]
        own = np.concatenate([scores[g.name].per_task[row].numpy() for g in reached])
        threshold = np.quantile(own, safety.protected_quantile)
        for group in reached:
            dropped = list(plan.drop.get(group.name, ()))
            gone += int((scores[group.name].per_task[row].numpy()[dropped] > threshold).sum())
    yield Guarantee.equal("channels above a task's protected quantile that went", gone, 0)

    limit = 0.5 * max(predicted_loss(scores, plan.drop).values())
    within = net.plan(0.8, scores, Safety(max_loss_increase=limit))
    rise = max(predicted_loss(scores, within.drop).values())
    yield Guarantee.below("largest predicted rise of a loss, over its limit", rise / limit, 1.0)

    watched = {
        name: replace(task, tolerance=0.001 if name == "lane" else 100.0)
        for name, task in net.tasks.items()
    }
    result = taskprune.prune(
        net.model,
        watched,
        0.4,
        data=net.batches,
        forward=net.forward,
        settings=PruneSettings(steps=2),
        validation=net.batches,
    )
    named = [broken.task for broken in result.report.broken]
    lost = [broken.task for broken in result.report.broken if broken.task != "lane"]
    yield Guarantee.equal("steps undone where the lanes' tolerance broke", len(named), 1)
    yield Guarantee.equal("other tasks named", len(lost), 0)


def _budgets(net: Bundled, scores: ChannelScores) -> Iterator[Guarantee]:
    budgets = {
        "params": Budget(params=0.673),
        "macs": Budget(macs=0.7),
        "activation_memory": Budget(activation_memory=0.96),
    }
    for name, budget in budgets.items():
        plan = solve(net.groups, scores, budget)
        before, after = plan.costs[name]
        miss = 100 * (budget.bounds[name] - after / before)
        yield Guarantee.below(f"{budget}: undershot by, %", miss, 0.5)
    both = solve(net.groups, scores, Budget(params=0.673, macs=0.7))
    over = max(
        after / before - bound
        for (before, after), bound in ((both.costs["params"], 0.673), (both.costs["macs"], 0.7))
    )
    yield Guarantee.below("both at once: exceeded by", over, 0.0)
    rounded = solve(net.groups, scores, Budget(params=0.673), safety=Safety(round_to=8))
    odd = sum(d.n_kept % 8 > 0 and d.n_kept < d.n_channels for d in rounded.groups)
    before, after = rounded.costs["params"]
    yield Guarantee.below("round_to=8: groups that keep no multiple", odd, 1)
    yield Guarantee.below("and the budget undershot by, %", 100 * (0.673 - after / before), 0.5)


def _zoo() -> Iterator[Guarantee]:
    """Predicted and counted costs over the nets of the test suite."""
    wrong: dict[str, int] = {"params": 0, "macs": 0}
    n_nets = 0
    for case in ZOO:
        torch.manual_seed(0)
        model, inputs = case.make().double().eval(), case.inputs()
        groups = couple(trace(model, inputs))
        scores = score(model, groups, {}, (), importance="magnitude")
        try:
            plan = solve(groups, scores, Budget(params=0.8), safety=Safety(min_channels=1))
        except InfeasibleBudgetError:
            continue
        n_nets += 1
        smaller = apply_plan(model, plan, example_inputs=inputs, verify=False)
        wrong["params"] += plan.costs["params"][1] != measure_params(smaller)
        wrong["macs"] += plan.costs["macs"][1] != measure_macs(smaller, inputs)
    for cost, count in wrong.items():
        yield Guarantee.equal(f"{n_nets} micro nets: predicted {cost} are not counted", count, 0)


def _tasks(net: Bundled) -> Iterator[Guarantee]:
    batch = net.batches[0]
    dropped = taskprune.drop_task(
        net.model, net.tasks, "detection", data=net.batches[:1], forward=net.forward
    )
    with torch.no_grad():
        before = flatten_outputs(net.forward(net.model.eval(), batch))
        after = flatten_outputs(net.forward(dropped.model.eval(), batch))
    apart = max(float((before[path] - tensor).abs().max()) for path, tensor in after.items())
    yield Guarantee.equal("without the detection task: change of the other outputs", apart, 0.0)
    whole, left = dropped.plan.costs["params"]
    yield Guarantee.above("and parameters that went with it", whole - left, 1)


def _recorded() -> Iterator[Guarantee]:
    """Yield what other scripts have measured, where they have."""
    if scoring := _file("scoring"):
        for row in scoring["rows"][:2]:
            promise = f"time of scoring over a bare loop, {row['criterion']}"
            yield Guarantee.below(promise, row["ratio"], 1.15)
    if solver := _file("solver"):
        gap = max(row["median gap %"] for row in solver["exhaustive"])
        yield Guarantee.below("median gap to exhaustive search, %", gap, 0.5)
        slowest = max(row["seconds"] for row in solver["speed"] if row["channels"] == 1_000_000)
        yield Guarantee.below("seconds to solve for a million channels", slowest, 10.0)
    if latency := _file("latency"):
        off = [abs(row["measured / predicted"] - 1) for row in latency.get("predictions", ())]
        if off:
            yield Guarantee.below("predicted latency off by, median", float(np.median(off)), 0.1)
        fastest = max(row["times faster"] for row in latency["rows"])
        yield Guarantee.above("l net, −32.7 % parameters: times faster", fastest, 1.5)


def _file(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
