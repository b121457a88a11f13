"""First-order Taylor importance of gates: what the channel's activations say."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.criteria.gates import gate_members
from taskprune.importance.criteria.taylor import summed_loss_scores
from taskprune.importance.scores import ChannelScores, Evidence


@dataclass(frozen=True)
class TaylorGateImportance:
    r"""Squared slope of a channel's gate.

    .. math:: E_b\Bigl[\Bigl(\sum_{a \in c} a \, \partial L_b / \partial a\Bigr)^2\Bigr]

    With the sum over all values of the channel that reading layers receive, samples and positions
    together, and :math:`L` the sum of the tasks' losses times their weights. Published with a gate
    behind each norm or feature map; one gate for a coupled channel, at its readers, is ours. How it
    comes out of weight gradients alone is told in :mod:`taskprune.importance.criteria.gates`.

    References:
        Molchanov et al., arXiv:1906.10771, with gates; Molchanov et al.,
        *Pruning Convolutional Neural Networks for Resource Efficient Inference*, ICLR 2017,
        arXiv:1611.06440, for activations.
    """

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel.

        Raises:
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        index = ChannelIndex(groups, gate_members)
        return summed_loss_scores("taylor_gate", model, index, evidence)
