"""CosPrune: channels on which the tasks' gradients disagree go first. A baseline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.backwards import TaskGradients
from taskprune.importance.calibration import for_each_batch
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.criteria_by_name import criterion
from taskprune.importance.distributed import summed
from taskprune.importance.scores import BLIND, ChannelScores, Evidence, GroupScores


@criterion
@dataclass(frozen=True)
class CosPruneImportance:
    """Mean over pairs of tasks and over batches of the cosine between their gradients.

    Over all parameter entries of a channel; the paper looks at a filter's weights. A pair in which
    one task's gradient is zero on the channel counts as 0, so with one task all scores are 0. The
    published method prunes a few filters at a time and scores again in between.

    References:
        Garg et al., arXiv:2304.06840.
    """

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel.

        Raises:
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        index = ChannelIndex(groups)
        parameters = index.find(dict(model.named_parameters()))
        cosine_sum = torch.zeros(index.n_channels, dtype=torch.float64, device="cpu")

        def visit(batch: Iterator[TaskGradients]) -> None:
            cosine_sum.add_(_mean_cosine(index, [dict(found.gradients) for found in batch]))

        n_batches = for_each_batch(
            model, parameters, evidence, visit, interim=lambda: cosine_sum.clone()
        )
        scores = index.split(GroupScores.blind(summed(cosine_sum) / n_batches))
        return ChannelScores("cosprune", BLIND, scores, n_batches)


def _mean_cosine(index: ChannelIndex, gradients: list[dict[str, Tensor | None]]) -> Tensor:
    def inner(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> Tensor:
        products = {
            name: a.float() * b.float()
            for name, a in one.items()
            if a is not None and (b := other.get(name)) is not None
        }
        return index.sums(products, torch.device("cpu"))

    norms = [inner(one, one).sqrt() for one in gradients]
    pairs = [(t, u) for t in range(len(gradients)) for u in range(t)]
    mean = torch.zeros(index.n_channels, dtype=torch.float64, device="cpu")
    for t, u in pairs:
        lengths = norms[t] * norms[u]
        cosine = inner(gradients[t], gradients[u]) / lengths.clamp_min(torch.finfo().tiny)
        mean += cosine.where(lengths > 0, torch.zeros_like(cosine)) / len(pairs)
    return mean
