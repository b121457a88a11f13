"""Weight magnitude over all parameter entries of a channel: needs neither tasks nor data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.criteria_by_name import criterion
from taskprune.importance.scores import BLIND, ChannelScores, Evidence, GroupScores


@criterion
@dataclass(frozen=True)
class MagnitudeImportance:
    r"""The L2 norm of all parameter entries of a channel, :math:`(\sum_{i \in c} w_i^2)^{1/2}`.

    References:
        Li et al., *Pruning Filters for Efficient ConvNets*, ICLR 2017, arXiv:1608.08710, for norms
        of filters; Fang et al., *DepGraph*, CVPR 2023, arXiv:2301.12900, for summing over all
        coupled parameters.
    """

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, _evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel; the evidence is not looked at."""
        index = ChannelIndex(groups)
        squares = _Squares(index.find(dict(model.named_parameters())))
        norms = index.sums(squares, torch.device("cpu")).sqrt()
        return ChannelScores("magnitude", BLIND, index.split(GroupScores.blind(norms)))


@dataclass(frozen=True)
class _Squares(Mapping[str, Tensor]):
    """Squares of weights, each made when it is read: all at once would be a second model."""

    weights: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        weight = self.weights[name].detach()
        return weight.to(torch.promote_types(weight.dtype, torch.float32)).square()

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)
