"""LAMP: a channel's energy, as a share of what would be left of its group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.criteria.magnitude import power_sums
from taskprune.importance.scores import ChannelScores, Evidence


@dataclass(frozen=True)
class LampImportance:
    r"""Layer-adaptive magnitude, :math:`S_c = w_c^2 / \sum_{d: w_d^2 \ge w_c^2} w_d^2`.

    Published for single weights within a layer. Here, ours: :math:`w_c^2` is the squared L2 norm
    of all parameter entries of a coupled channel, and the layer is its group. The largest channel
    of each group scores 1.

    References:
        Lee et al., *Layer-adaptive Sparsity for the Magnitude-based Pruning*, ICLR 2021,
        arXiv:2010.07611.
    """

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, _evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel; the evidence is not looked at."""
        index = ChannelIndex(groups)
        energies = index.split(power_sums(model, index, 2))
        return ChannelScores.of_all_tasks(
            "lamp", {name: _share_of_rest(energy) for name, energy in energies.items()}
        )


def _share_of_rest(energy: Tensor) -> Tensor:
    order = energy.argsort()
    ascending = energy[order]
    rest = ascending.flip(0).cumsum(0).flip(0)
    # Equal channels share one denominator: that of the first of them.
    rest = rest[torch.searchsorted(ascending, ascending)]
    shares = torch.where(rest > 0, ascending / rest.clamp_min(torch.finfo(rest.dtype).tiny), 0.0)
    return torch.empty_like(shares).index_copy_(0, order, shares)
