"""What each task loses, and how much its outputs change where its loss looks. Ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from zlib import crc32

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError, short
from taskprune.importance import aggregation
from taskprune.importance.aggregation import Aggregation
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.conflict import EffectConflict, of_pairs
from taskprune.importance.criteria_by_name import criterion
from taskprune.importance.effects import TaskStatistics, collect, loss_increase
from taskprune.importance.projections import LossProjection
from taskprune.importance.scores import ChannelScores, Evidence, GroupScores


@criterion
@dataclass(frozen=True)
class TaskChangeImportance:
    r"""What each task's loss and each task's outputs change by, each in shares of its sum.

    .. math:: S_c = \mathrm{aggregate}_t \Bigl( \omega_t^2 \Bigl[
              \frac{E_b[s_{b,t,c}^2]}{\sum_d E_b[s_{b,t,d}^2]} +
              \beta \frac{E_b[p_{b,t,c}^2]}{\sum_d E_b[p_{b,t,d}^2]} \Bigr] \Bigr)

    with *s* the signed effect on the task's loss (:mod:`taskprune.importance.effects`), as in
    Taylor importance (Molchanov et al., arXiv:1906.10771), and *p* that on a random projection of
    the task's outputs whose entries count by the loss's gradient
    (:class:`~taskprune.importance.projections.LossProjection`).

    A trained loss is flat: effects that cancel out over a batch look like none, and then several
    of them go. What outputs change by does not cancel, but says nothing of what a task wants. A
    channel that either misses stays. Scales of losses and outputs change nothing, so no task has
    to be weighed against another.

    Where tasks pull a channel in opposite ways is told (``pair_conflict``) and not taken off.

    Costs two backwards per task and batch, one for the loss and one for the outputs.

    Attributes:
        aggregate: ``[T, C] -> [C]``, see :mod:`taskprune.importance.aggregation`.
        correlation: See :class:`~taskprune.importance.TaskTaylorImportance`.
        outputs: :math:`\beta`, what outputs count beside losses.
        floor: What an entry of an output counts that its loss does not look at, where the mean of
            what its loss looks at is 1.
        seed: Of the projections; no other generator is touched.
    """

    aggregate: Aggregation = aggregation.total
    correlation: float = 0.1
    outputs: float = 1.0
    floor: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.correlation <= 1:
            raise InputError(
                f"`correlation` must lie between 0 and 1. Found {short(self.correlation)}."
            )
        if not 0 <= self.outputs < math.inf:
            raise InputError(
                f"`outputs` must be a number of at least 0. Found {short(self.outputs)}."
            )
        if not self.floor > 0:
            raise InputError(f"`floor` must be above 0. Found {short(self.floor)}.")

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel for every task.

        Raises:
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        probes = {
            name: LossProjection(
                task.output_paths, floor=self.floor, seed=self.seed + crc32(name.encode())
            )
            for name, task in evidence.tasks.items()
        }
        weights = {name: task.weight for name, task in evidence.tasks.items()}
        statistics = collect(
            model,
            ChannelIndex(groups),
            replace(evidence, probes=probes),
            total=lambda so_far: self._scores(so_far, weights).total,
        )
        return self._weighed(statistics, weights)

    def _weighed(self, statistics: TaskStatistics, by_task: Mapping[str, float]) -> ChannelScores:
        return ChannelScores(
            criterion="task_change",
            tasks=statistics.tasks,
            groups=statistics.index.split(self._scores(statistics, by_task)),
            n_batches=statistics.n_batches,
            correlation=self.correlation,
            reweighted=partial(self._weighed, statistics),
        )

    def _scores(self, statistics: TaskStatistics, by_task: Mapping[str, float]) -> GroupScores:
        """Return the scores of all channels in running order."""
        weights = statistics.in_rows(by_task)
        effects = statistics.mean_squares(torch.ones_like(weights))
        both = _shares(effects) + self.outputs * _shares(statistics.probes)
        per_task = weights.square()[:, None] * both
        total = self.aggregate(per_task)
        scale = weights * effects.sum(1).rsqrt().nan_to_num(posinf=0.0)
        pairs = of_pairs(EffectConflict()(statistics, scale, total))
        return GroupScores(
            total,
            per_task,
            pairs if len(weights) > 1 else None,
            loss_increase(effects, statistics.mean_loss),
        )


def _shares(squares: Tensor) -> Tensor:
    """Divide each row by its sum, where it has one."""
    sums = squares.sum(1, keepdim=True)
    return squares / sums.where(sums > 0, 1.0)
