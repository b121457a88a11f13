"""What each task would lose, less where the tasks pull apart. Ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError, short
from taskprune.importance import aggregation
from taskprune.importance.aggregation import Aggregation
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.conflict import Conflict, EffectConflict, of_pairs
from taskprune.importance.criteria_by_name import criterion
from taskprune.importance.effects import TaskStatistics, collect, loss_increase
from taskprune.importance.normalisation import Normalisation, by_stake
from taskprune.importance.scores import ChannelScores, Evidence, GroupScores


@criterion
@dataclass(frozen=True)
class TaskTaylorImportance:
    r"""Taylor importance of each task, aggregated, less a penalty for conflict.

    .. math:: I_{t,c} = E_b[(a_t s_{b,t,c})^2], \qquad
              S_c = \mathrm{aggregate}_t \, I_{t,c} - \lambda P_c

    with :math:`s` the signed effect (:mod:`taskprune.importance.effects`), :math:`a_t` the task's
    weight over what it has to lose (:func:`~taskprune.importance.normalisation.by_stake`) and
    :math:`P` the conflict. The combination is ours; its parts are Taylor importance (Molchanov et
    al., arXiv:1906.10771) and the idea to count conflict between tasks against a channel (Garg et
    al., arXiv:2304.06840; Wang et al., arXiv:2511.05557).

    Attributes:
        conflict_weight: :math:`\lambda`, at least 0. With 0 the score is plain per-task Taylor.
        conflict: Definition of :math:`P`: opposite effects or opposed gradients.
        aggregate: ``[T, C] -> [C]``, see :mod:`taskprune.importance.aggregation`.
        normalise: Returns a factor per task, see :mod:`taskprune.importance.normalisation`.
        correlation: How alike the effects of channels of one group are taken to be, 0 to 1, when
            several of them go; see :func:`~taskprune.importance.accumulation.accumulated`. Pass 0
            with an aggregation that returns ranks.
    """

    conflict_weight: float = 1.0
    conflict: Conflict = field(default_factory=EffectConflict)
    aggregate: Aggregation = aggregation.total
    normalise: Normalisation = by_stake
    correlation: float = 0.1

    def __post_init__(self) -> None:
        if not self.conflict_weight >= 0:
            raise InputError(
                f"`conflict_weight` must be at least 0. Found {short(self.conflict_weight)}."
            )
        if not 0 <= self.correlation <= 1:
            raise InputError(
                f"`correlation` must lie between 0 and 1. Found {short(self.correlation)}."
            )

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel for every task.

        Raises:
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        penalised = self.conflict_weight > 0 and len(evidence.tasks) > 1
        weights = {name: task.weight for name, task in evidence.tasks.items()}
        statistics = collect(
            model,
            ChannelIndex(groups),
            evidence,
            with_gramian=penalised and self.conflict.needs_gramian,
            with_stakes=len(evidence.tasks) > 1,
            total=lambda so_far: self._scores(so_far, weights).total,
        )
        return self._weighed(statistics, weights)

    def _weighed(self, statistics: TaskStatistics, by_task: Mapping[str, float]) -> ChannelScores:
        scores = self._scores(statistics, by_task)
        squares = statistics.mean_squares(torch.ones(len(statistics.tasks), device="cpu"))
        return ChannelScores(
            criterion="task_taylor",
            tasks=statistics.tasks,
            groups=statistics.index.split(
                replace(scores, loss_increase=loss_increase(squares, statistics.mean_loss))
            ),
            n_batches=statistics.n_batches,
            correlation=self.correlation,
            reweighted=partial(self._weighed, statistics),
        )

    def _scores(self, statistics: TaskStatistics, by_task: Mapping[str, float]) -> GroupScores:
        """Return the scores of all channels in running order."""
        scale = statistics.in_rows(by_task) * self.normalise(statistics)
        per_task = statistics.mean_squares(scale)
        importance = self.aggregate(per_task)
        n_tasks = len(statistics.tasks)
        if self.conflict_weight == 0 or n_tasks == 1:
            return GroupScores(importance, per_task)
        pairs = of_pairs(self.conflict(statistics, scale, importance))
        return GroupScores(importance - self.conflict_weight * pairs.sum(0), per_task, pairs)
