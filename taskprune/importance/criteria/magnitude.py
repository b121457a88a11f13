"""Weight magnitude over all parameter entries of a channel: needs neither tasks nor data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.scores import ChannelScores, Evidence


@dataclass(frozen=True)
class MagnitudeImportance:
    r"""The norm of all parameter entries of a channel, :math:`(\sum_{i \in c} |w_i|^p)^{1/p}`.

    Attributes:
        p: 1 or 2.

    References:
        Li et al., *Pruning Filters for Efficient ConvNets*, ICLR 2017, arXiv:1608.08710, for norms
        of filters; Fang et al., *DepGraph*, CVPR 2023, arXiv:2301.12900, for summing over all
        coupled parameters.
    """

    p: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise InputError(f"`p` must be 1 or 2. Found {self.p!r}.")

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, _evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel; the evidence is not looked at."""
        index = ChannelIndex(groups)
        sums = power_sums(model, index, self.p)
        return ChannelScores.of_all_tasks(
            "magnitude" if self.p == 2 else "magnitude_l1", index.split(sums ** (1 / self.p))
        )


def power_sums(model: nn.Module, index: ChannelIndex, p: int) -> Tensor:
    """Return the sum of ``|w| ** p`` over each channel's entries. Shape ``[C]``, float64."""
    powers = {
        name: w.detach().to(torch.promote_types(w.dtype, torch.float32)).abs().pow(p)
        for name, w in index.find(dict(model.named_parameters())).items()
    }
    return index.sums(powers, torch.device("cpu"))
