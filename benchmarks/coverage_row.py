"""One row of the coverage benchmark: an architecture, pruned by taskprune and by Torch-Pruning."""

from __future__ import annotations

import math
from typing import Any

import torch
from architectures import architectures
from children import Outcome, Report, watched
from peers import torch_pruning_is_exact, torch_pruning_result

from taskprune import Budget, couple, solve, trace
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InfeasibleBudgetError
from taskprune.importance import score
from taskprune.rewrite import apply_and_verify
from taskprune.testing import assert_permutation_invariant, randomise_

RATIOS = (0.3, 0.5)
PEER_RATIO = 0.5
STUCK = frozenset({"literal", "attribute", "unknown"})


def built(name: str) -> tuple[torch.nn.Module, Any]:
    architecture = next(known for known in architectures() if known.name == name)
    torch.manual_seed(0)
    return randomise_(architecture.make().eval(), seed=0), architecture.inputs()


def our_result(report: Report, name: str) -> None:
    """Prune one architecture at all ratios."""
    model, inputs = built(name)
    with watched() as watch:
        groups = couple(trace(model, inputs))
    row: Outcome = {"outcome": "ok", "seconds": watch.seconds, **_coverage(groups)}
    try:
        row["permuted"] = assert_permutation_invariant(model, groups, None, inputs)
    except AssertionError as error:
        row["outcome"] = f"permutation: {str(error)[:200]}"
    scores = score(model, groups, importance="magnitude")
    for ratio in RATIOS:
        key = f"{ratio:g}"
        try:
            plan = solve(groups, scores, Budget.from_ratio(ratio))
            before, after = plan.costs["params"]
            row[f"removed {key}"] = 1 - after / before
            verified = apply_and_verify(model, plan, example_inputs=inputs, groups=groups)[1]
            assert verified is not None
            row[f"oracle {key}"] = verified.oracle
            row[f"error {key}"] = verified.max_relative_error
        except InfeasibleBudgetError as error:
            row[f"oracle {key}"] = "infeasible"
            row["outcome"] = f"infeasible: {str(error)[:300]}"
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is the row's content
            row[f"oracle {key}"] = "failed"
            row["outcome"] = f"{type(error).__name__}: {str(error)[:300]}"
    report(row)


def peer_result(report: Report, name: str) -> None:
    """Report what Torch-Pruning does, then again with the exactness, if there is time for that."""
    outcome = torch_pruning_result(*built(name), ratio=PEER_RATIO)
    report({**outcome, "exact": None})
    if outcome["outcome"] == "runs":
        report({**outcome, "exact": torch_pruning_is_exact(*built(name), ratio=PEER_RATIO)})


def _coverage(groups: CouplingGroups) -> Outcome:
    free = sum(group.n_channels for group in groups)
    frozen = [(g.n_channels, g.reasons[0].kind) for g in groups.frozen if g.reasons]
    stuck = sum(n for n, kind in frozen if kind in STUCK)
    unknown = sum(n for n, kind in frozen if kind == "unknown")
    total = sum(math.prod(groups.shapes[name]) for name in groups.parameter_names)
    return {
        "params": total,
        "groups": len(groups),
        "channels": free,
        "stuck": stuck / max(1, free + stuck),
        "unknown": unknown / max(1, free + unknown),
        "unknown channels": unknown,
        "params in reach": _in_reach(groups) / max(1, total),
    }


def _in_reach(groups: CouplingGroups) -> float:
    """Return how many parameters belong to a channel that can go."""
    staying: dict[str, dict[int, int]] = {}
    for member in (member for group in groups for member in group.members):
        if member.name in groups.parameter_names:
            dims = staying.setdefault(member.name, {})
            full = dims.setdefault(member.dim, groups.shapes[member.name][member.dim])
            dims[member.dim] = full - member.index.size
    reach = 0.0
    for name, dims in staying.items():
        shape = groups.shapes[name]
        rest = math.prod(n / shape[dim] for dim, n in dims.items())
        reach += math.prod(shape) * (1 - rest)
    return reach
