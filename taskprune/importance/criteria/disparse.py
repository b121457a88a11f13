"""DiSparse-style unanimity: a channel goes only if every task lets it go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.effects import TaskStatistics, collect
from taskprune.importance.scores import ChannelScores, Evidence


@dataclass(frozen=True)
class DisparseImportance:
    r"""Largest over tasks of the channel's place in that task's order, from 0 to below 1.

    Published: each task scores single weights by the gradient of a mask on them, keeps the top
    share *k* of them, and a shared weight is pruned only if *no* task keeps it. Here, ours:
    channels for weights, with :math:`E_b[s^2]` of the signed effect for a score; and in place of
    votes at one *k*, the place :math:`q_{t,c}` of the channel in the task's order, the share of
    channels it scores above. Task *t* votes to keep *c* at share *k* iff :math:`q_{t,c} \ge 1 - k`,
    so :math:`\max_t q_{t,c} < 1 - k` iff all vote against it: one order holds the unanimous sets
    of every *k*. Losses need no common scale.

    References:
        Sun et al., *DiSparse: Disentangled Sparsification for Multitask Model Compression*,
        CVPR 2022, arXiv:2206.04662.
    """

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel.

        Raises:
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        statistics = collect(
            model, ChannelIndex(groups), evidence, total=lambda so_far: _places(so_far).amax(0)
        )
        places = _places(statistics)
        return ChannelScores(
            criterion="disparse",
            tasks=statistics.tasks,
            per_task=statistics.index.split(places),
            total=statistics.index.split(places.amax(0)),
            n_batches=statistics.n_batches,
        )


def _places(statistics: TaskStatistics) -> Tensor:
    squares = statistics.products.diagonal(dim1=0, dim2=1).T.contiguous()  # [T, C]
    return torch.stack([places(row) for row in squares])


def places(scores: Tensor) -> Tensor:
    """Return which share of all scores each lies above; equal ones have equal places.

    Args:
        scores: Shape ``[C]``.
    """
    return torch.searchsorted(scores.sort()[0], scores).double() / max(1, scores.numel())
