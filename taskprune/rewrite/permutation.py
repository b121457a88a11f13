"""Permuting the channels of a group: the oracle that holds across any statistic."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import torch
from torch import nn

from taskprune.coupling.groups import CouplingGroup, IntArray
from taskprune.replace import ModuleReplacement
from taskprune.rewrite.surgery import named_tensors, replaced_copy


def channel_order(group: CouplingGroup, seed: int) -> IntArray:
    """Return a random order of the group's channels that leaves none where it was."""
    rng = np.random.default_rng(seed)
    # Shifting a random order by one along itself is one long cycle: it has no fixed point.
    cycle = rng.permutation(group.n_channels)
    order = np.empty_like(cycle)
    order[cycle] = np.roll(cycle, 1)
    return order.astype(np.int64)


def permuted_copy(
    model: nn.Module,
    replacements: Iterable[ModuleReplacement],
    groups: Collection[CouplingGroup],
    seed: int,
) -> nn.Module:
    """Return a copy where every channel of each group has another one's place, everywhere.

    The replacements are in place in it.
    """
    names = {member.name for group in groups for member in group.members}
    permuted = replaced_copy(model, replacements, borrowing=names)
    tensors = named_tensors(permuted)
    for number, group in enumerate(groups):
        order = channel_order(group, seed + number)
        for member in group.members:
            tensor = tensors[member.name]
            positions = np.arange(tensor.shape[member.dim])
            positions[member.index.ravel()] = member.index[order].ravel()
            index = torch.from_numpy(positions).to(tensor.device)
            tensor.data = tensor.data.index_select(member.dim, index)
    return permuted
