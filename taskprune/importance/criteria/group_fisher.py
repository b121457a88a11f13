"""Group Fisher: one gate for all layers that read a channel, per memory it would free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.criteria.fisher import fisher_information
from taskprune.importance.scores import ChannelScores, Evidence


@dataclass(frozen=True)
class GroupFisherImportance:
    r"""Per-sample Fisher of one gate, over the memory it frees.

    .. math:: \frac{1}{2N M_c} \sum_n \Bigl(\sum_{a \in c} a \, \partial L_n / \partial a\Bigr)^2

    The slopes of all layers that read the channel are added *before* they are squared, and the
    result is divided by the memory :math:`M_c` that the channel frees: the number of values of one
    sample in all distinct tensors that those layers read. Samples and losses as in
    :class:`~taskprune.importance.criteria.fisher.FisherImportance`.

    Attributes:
        per_memory: Divide by the memory, as published; otherwise the score is not normalised.

    References:
        Liu et al., *Group Fisher Pruning for Practical Network Compression*, ICML 2021,
        arXiv:2108.00708. Published with one channel removed at a time.
    """

    per_memory: bool = True

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel.

        Raises:
            InputError: No layer reads or makes channels, or samples cannot be told apart.
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        found = fisher_information(model, groups, evidence, _square_of_sum)
        scores = found.information
        if self.per_memory:
            scores = scores / found.sizes.clamp_min(1)
        return found.scores("group_fisher", scores)


def _square_of_sum(slopes: Iterator[Tensor]) -> Tensor:
    total = next(slopes)
    for slope in slopes:
        total += slope
    return total.square()
