"""Fisher pruning: the slope of every sample's gates, squared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError
from taskprune.importance.backwards import TaskGradients
from taskprune.importance.calibration import for_each_batch
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.criteria.gates import GateWatch, find_gates, gate_members
from taskprune.importance.distributed import summed
from taskprune.importance.scores import ChannelScores, Evidence, unscored_last


@dataclass(frozen=True)
class FisherImportance:
    r"""Per-sample Fisher of the gates of single layers.

    .. math:: \frac{1}{2N} \sum_n \sum_l
        \Bigl(\sum_{a \in l,c} a \, \partial L_n / \partial a\Bigr)^2

    With a gate of its own for each layer *l* that reads the channel, *N* samples, and
    :math:`L_n` the part of sample *n* in the tasks' weighted losses, which are taken to be means
    over the batch. The first dim of what layers receive is taken to hold the samples, or the
    samples times what the code folds into it, samples first. Channels that no convolution or linear
    layer reads or makes go last. Published for the feature maps of single layers; the sum over the
    readers of a coupled channel is ours.

    References:
        Theis et al., *Faster Gaze Prediction with Dense Networks and Fisher Pruning*,
        arXiv:1801.05787.
    """

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel.

        Raises:
            InputError: No layer reads or makes channels, or samples cannot be told apart.
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        found = fisher_information(model, groups, evidence, _sum_of_squares)
        return found.scores("fisher", found.information)


def _sum_of_squares(slopes: Iterator[Tensor]) -> Tensor:
    total = next(slopes).square()
    for slope in slopes:
        total += slope.square()
    return total


@dataclass(frozen=True, eq=False, slots=True)
class FisherInformation:
    """What the samples say.

    Attributes:
        index: Running numbers of the channels.
        information: Mean over samples, halved. Shape ``[C]``, float64.
        sizes: Values of each channel that one sample holds in memory. Shape ``[C]``, float64.
        gated: Whether a channel has a gate. Shape ``[C]``.
        n_batches: How many batches there were.
    """

    index: ChannelIndex
    information: Tensor
    sizes: Tensor
    gated: Tensor
    n_batches: int

    def scores(self, criterion: str, running: Tensor) -> ChannelScores:
        """Make the record of scores in running order."""
        total = self.index.split(unscored_last(running, self.gated))
        return ChannelScores.of_all_tasks(criterion, total, self.n_batches)


def fisher_information(
    model: nn.Module,
    groups: CouplingGroups,
    evidence: Evidence,
    square: Callable[[Iterator[Tensor]], Tensor],
) -> FisherInformation:
    """Run the batches once and add up squared slopes.

    Args:
        model: The model.
        groups: Its coupling groups.
        evidence: Tasks and batches.
        square: From the slopes at each layer, each ``[n_samples, C]``, to their square.
    """
    index = ChannelIndex(groups, gate_members)
    index.find(dict(model.named_parameters()))
    gates = find_gates(model, groups, index)
    if not gates and groups.groups:
        raise InputError(
            "Fisher criteria look at what convolutions and linear layers receive. Found none that "
            f"reads or makes channels of the {len(groups)} groups. Choose importance='taylor_gate'."
        )
    watch = GateWatch(gates)
    weights = [task.weight for task in evidence.tasks.values()]
    n_channels = index.n_channels
    information = torch.zeros(n_channels, dtype=torch.float64)
    sizes = torch.zeros(n_channels, dtype=torch.float64)
    samples = torch.zeros((), dtype=torch.float64)

    def visit(batch: Iterator[TaskGradients]) -> None:
        whole: list[Tensor | None] = [None] * len(watch.tensors)
        for found in batch:
            for i, gradient in enumerate(found.watched):
                if gradient is not None:
                    own = weights[found.task] * gradient
                    known = whole[i]
                    whole[i] = own if known is None else known + own
        # The loss is a mean: a sample's own loss is its part times the number of samples.
        squares = square(watch.effects(tuple(whole), n_channels))
        information.add_(squares.sum(0) * watch.n_samples**2)
        sizes.add_(watch.sizes(n_channels) * watch.n_samples)
        samples.add_(watch.n_samples)

    n_batches = for_each_batch(
        model, {}, evidence, visit, watch=watch, interim=lambda: information.clone()
    )
    n_samples = summed(samples).clamp_min(1)
    gated = torch.zeros(n_channels + 1, dtype=torch.bool)
    for gate in gates:
        gated[gate.channel] = True
    return FisherInformation(
        index=index,
        information=summed(information) / (2 * n_samples),
        sizes=summed(sizes) / n_samples,
        gated=gated[:-1],
        n_batches=n_batches,
    )
