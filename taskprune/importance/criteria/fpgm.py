"""FPGM: a channel near the middle of all others can be replaced by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroup, CouplingGroups
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.scores import ChannelScores, Evidence

ROWS = 256
"""Channels whose distances to all others are held at a time."""


@dataclass(frozen=True)
class FpgmImportance:
    r"""Sum of distances to the other channels of the group, :math:`\sum_d \|W_c - W_d\|_2`.

    Published for the filters of one convolution. Here, ours: :math:`W_c` is made of all parameter
    entries of a coupled channel.

    References:
        He et al., *Filter Pruning via Geometric Median*, CVPR 2019, arXiv:1811.00250.
    """

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, _evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel; the evidence is not looked at."""
        # Also makes sure that the groups are those of this model.
        parameters = ChannelIndex(groups).find(dict(model.named_parameters()))
        return ChannelScores.of_all_tasks(
            "fpgm", {group.name: _distances(_vectors(group, parameters)) for group in groups}
        )


def _vectors(group: CouplingGroup, parameters: Mapping[str, Tensor]) -> Tensor:
    """Return all parameter entries of each channel. Shape ``[n_channels, n_entries]``."""
    rows: list[Tensor] = []
    for member in group.members:
        if member.name in parameters:
            parameter = parameters[member.name].detach()
            where = torch.from_numpy(member.index.ravel()).to(parameter.device)
            entries = parameter.movedim(member.dim, 0).index_select(0, where)
            rows.append(entries.double().reshape(group.n_channels, -1).cpu())
    return torch.cat(rows, dim=1) if rows else torch.zeros(group.n_channels, 0).double()


def _distances(vectors: Tensor) -> Tensor:
    # Around their mean the squares are as small as can be, so their differences are most exact.
    centred = vectors - vectors.mean(dim=0, keepdim=True)
    squares = centred.square().sum(1)
    sums: list[Tensor] = []
    for start in range(0, len(centred), ROWS):
        own = slice(start, start + ROWS)
        squared = squares[own, None] + squares[None] - 2 * centred[own] @ centred.T
        diagonal = torch.arange(len(squared))
        squared[diagonal, diagonal + start] = 0
        sums.append(squared.clamp_min(0).sqrt().sum(1))
    return torch.cat(sums)
