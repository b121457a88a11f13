"""Coupling groups without a model: chains of layers, and layers that do not interact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from taskprune.coupling.groups import (
    CouplingGroup,
    CouplingGroups,
    FreezeReason,
    FrozenGroup,
    LinearForm,
    MacsTerm,
    TensorSlice,
)
from taskprune.importance.scores import BLIND, ChannelScores, GroupScores
from taskprune.plan.plan import PruningPlan


def entries(name: str, dim: int, n: int, *, produces: bool = True) -> TensorSlice:
    return TensorSlice(name, dim, np.arange(n, dtype=np.int64)[:, None], produces)


def chain(
    widths: Sequence[int],
    positions: Sequence[int] | None = None,
    *,
    kernel: int = 9,
    tasks: Sequence[Sequence[str]] | None = None,
    outputs: int = 10,
) -> CouplingGroups:
    """Layers that each read the last one; layer i runs at ``positions[i]`` places."""
    places = positions or [1] * len(widths)
    names = tuple(sorted({t for own in tasks or [["a"]] for t in own}))
    inputs = [3, *widths[:-1]]
    groups, macs = [], []
    for i, width in enumerate(widths):
        reader = f"layer{i + 1}.weight" if i + 1 < len(widths) else "head.weight"
        members = (entries(f"layer{i}.weight", 0, width), entries(reader, 1, width, produces=False))
        own = frozenset(tasks[i] if tasks else names)
        groups.append(CouplingGroup(f"layer{i}", width, members, tasks=own))
        forms = [LinearForm(0, {f"layer{i}": 1})]
        forms += [LinearForm(0, {f"layer{i - 1}": 1})] if i else [LinearForm(3)]
        macs.append(MacsTerm("conv", f"layer{i}", kernel * places[i], tuple(forms)))
    last = LinearForm(0, {f"layer{len(widths) - 1}": 1})
    macs.append(MacsTerm("linear", "head", outputs, (last,)))
    shapes: dict[str, tuple[int, ...]] = {
        f"layer{i}.weight": (width, inputs[i], kernel) for i, width in enumerate(widths)
    }
    shapes["head.weight"] = (outputs, widths[-1])
    reason = FreezeReason("interface", "an output of the model", source="net.py:7")
    return CouplingGroups(
        groups=tuple(groups),
        frozen=(
            FrozenGroup("head", outputs, (entries("head.weight", 0, outputs),), (reason,)),
            FrozenGroup(
                "layer0.weight dim 2",
                kernel,
                (entries("layer0.weight", 2, kernel),),
                (FreezeReason("structure", "kernel"),),
            ),
        ),
        shapes=shapes,
        parameter_names=frozenset(shapes),
        macs=tuple(macs),
        tasks=names,
    )


def apart(widths: Sequence[int], sizes: Sequence[int], macs: Sequence[int]) -> CouplingGroups:
    """Groups that share no tensor: a channel of group i has ``sizes[i]`` parameters."""
    return CouplingGroups(
        groups=tuple(
            CouplingGroup(f"g{i}", n, (entries(f"g{i}.weight", 0, n),), tasks=frozenset({"a"}))
            for i, n in enumerate(widths)
        ),
        frozen=(),
        shapes={f"g{i}.weight": (n, sizes[i]) for i, n in enumerate(widths)},
        parameter_names=frozenset(f"g{i}.weight" for i in range(len(widths))),
        macs=tuple(
            MacsTerm("linear", f"g{i}", macs[i], (LinearForm(0, {f"g{i}": 1}),))
            for i in range(len(widths))
        ),
        tasks=("a",),
    )


def random_scores(groups: CouplingGroups, seed: int = 0) -> ChannelScores:
    rng = np.random.default_rng(seed)
    total = {g.name: torch.from_numpy(rng.gamma(0.5, size=g.n_channels)) for g in groups}
    return scores_from(total)


def scores_from(total: dict[str, torch.Tensor]) -> ChannelScores:
    return ChannelScores("test", BLIND, {n: GroupScores.blind(s) for n, s in total.items()})


def totals(scores: ChannelScores) -> dict[str, torch.Tensor]:
    return {name: own.total for name, own in scores.groups.items()}


def dropped_score(plan: PruningPlan, scores: ChannelScores) -> float:
    return sum(float(scores[name].total[list(drop)].sum()) for name, drop in plan.drop.items())
