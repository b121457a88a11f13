"""First-order Taylor importance of one loss: the weighted sum of all tasks' losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.criteria_by_name import criterion
from taskprune.importance.effects import TaskStatistics, collect
from taskprune.importance.scores import BLIND, ChannelScores, Evidence, GroupScores


@criterion
@dataclass(frozen=True)
class TaylorImportance:
    r"""Squared effect on the summed loss, :math:`E_b[(\sum_t \omega_t s_{b,t,c})^2]`.

    The baseline that knows of tasks only through the sum of their losses, with ``Task.weight`` as
    :math:`\omega_t` and the losses as they come: the one with the largest values decides.

    References:
        Molchanov et al., *Importance Estimation for Neural Network Pruning*, CVPR 2019,
        arXiv:1906.10771, eq. 8, over all parameters of a coupled channel, squared per batch.
    """

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel.

        Raises:
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        weights = torch.tensor(
            [t.weight for t in evidence.tasks.values()], dtype=torch.float64, device="cpu"
        )
        factors = weights[:, None] * weights[None]

        def total(statistics: TaskStatistics) -> Tensor:
            # The quadratic form is a square; rounding may take it a little below zero.
            running = (factors[..., None] * statistics.products).sum((0, 1)).clamp_min(0)
            return running / statistics.n_batches

        statistics = collect(model, ChannelIndex(groups), evidence, total=total)
        scores = statistics.index.split(GroupScores.blind(total(statistics)))
        return ChannelScores("taylor", BLIND, scores, statistics.n_batches)
