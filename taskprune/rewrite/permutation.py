"""Permuting the channels of a group: the oracle that holds across any statistic."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroup, IntArray, TensorSlice
from taskprune.replace import ModuleReplacement
from taskprune.rewrite.loading import Values
from taskprune.rewrite.surgery import copy_with


def channel_order(group: CouplingGroup, seed: int) -> IntArray:
    """Return a random order of the group's channels that leaves none where it was."""
    rng = np.random.default_rng(seed)
    # Shifting a random order by one along itself is one long cycle: it has no fixed point.
    cycle = rng.permutation(group.n_channels)
    order = np.empty_like(cycle)
    order[cycle] = np.roll(cycle, 1)
    return order.astype(np.int64)


def permuting(groups: Collection[CouplingGroup], seed: int) -> Values:
    """Return what tensors hold once each group's channels have another one's place, everywhere.

    They are those of the model with the replacements in place.
    """
    moved: dict[str, list[tuple[TensorSlice, IntArray]]] = {}
    for number, group in enumerate(groups):
        order = channel_order(group, seed + number)
        for member in group.members:
            moved.setdefault(member.name, []).append((member, order))

    def values(name: str, data: Tensor) -> Tensor:
        for member, order in moved.get(name, ()):
            positions = np.arange(data.shape[member.dim])
            positions[member.index.ravel()] = member.index[order].ravel()
            data = data.index_select(member.dim, torch.from_numpy(positions).to(data.device))
        return data

    return values


def permuted_copy(
    model: nn.Module,
    replacements: Iterable[ModuleReplacement],
    groups: Collection[CouplingGroup],
    seed: int,
) -> nn.Module:
    """Return a copy, with the replacements in place, whose groups are permuted."""
    return copy_with(model, permuting(groups, seed), replacements)
