"""The default criterion: what each task would lose, less where the tasks pull apart. Ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError, LossError
from taskprune.importance import aggregation
from taskprune.importance.aggregation import Aggregation
from taskprune.importance.conflict import Conflict, EffectConflict
from taskprune.importance.effects import TaskStatistics, collect
from taskprune.importance.scores import ChannelScores, Evidence

Normalisation = Callable[[TaskStatistics], Tensor]
"""Returns a positive factor for the effects of each task. Shape ``[T]``, float64."""


def by_mean_loss(statistics: TaskStatistics) -> Tensor:
    """Divide each task's effects by its mean absolute loss over the calibration batches.

    An effect is then a relative change of the loss, and multiplying a loss by a constant changes
    nothing. Dividing by a task's mean *score* would do that too, but makes a task that hardly
    depends on most channels as loud as one that does. Where the model was trained on the plain sum
    of these very losses, their own scale is meaningful too, see :func:`as_they_are`.

    A single task is left as it is: there is no other to be brought onto one scale with.

    Raises:
        LossError: A task's loss is 0 on all batches although channels have an effect on it.
    """
    if len(statistics.tasks) == 1:
        return torch.ones(1, dtype=torch.float64)
    silent = statistics.products.diagonal(dim1=0, dim2=1).T.amax(dim=1) == 0
    for name, loss, is_silent in zip(
        statistics.tasks, statistics.mean_loss.tolist(), silent.tolist(), strict=True
    ):
        if loss == 0 and not is_silent:
            raise LossError(
                f"The loss of task `{name}` is 0 on every calibration batch, yet its gradient is "
                "not, so its effects cannot be put in relation to it. Return a loss that measures "
                "the error, or pass TaskTaylorImportance(normalise=as_they_are)."
            )
    return torch.where(silent, 1.0, 1 / statistics.mean_loss)


def as_they_are(statistics: TaskStatistics) -> Tensor:
    """Leave the losses on the scales they come in."""
    return torch.ones(len(statistics.tasks), dtype=torch.float64)


@dataclass(frozen=True)
class TaskTaylorImportance:
    r"""Taylor importance of each task, aggregated, less a penalty for conflict.

    .. math:: I_{t,c} = E_b[(a_t s_{b,t,c})^2], \qquad
              S_c = \mathrm{aggregate}_t \, I_{t,c} - \lambda P_c

    with :math:`s` the signed effect (:mod:`taskprune.importance.effects`), :math:`a_t` the task's
    weight over its mean loss and :math:`P` the conflict. The combination is ours; its parts are
    Taylor importance (Molchanov et al., arXiv:1906.10771) and the idea to count conflict between
    tasks against a channel (Garg et al., arXiv:2304.06840; Wang et al., arXiv:2511.05557).

    Attributes:
        conflict_weight: :math:`\lambda`, at least 0. With 0 the score is plain per-task Taylor.
        conflict: Definition of :math:`P`: opposite effects or opposed gradients.
        aggregate: ``[T, C] -> [C]``, see :mod:`taskprune.importance.aggregation`.
        normalise: Returns a factor per task, see :func:`by_mean_loss`.
    """

    conflict_weight: float = 1.0
    conflict: Conflict = field(default_factory=EffectConflict)
    aggregate: Aggregation = aggregation.total
    normalise: Normalisation = by_mean_loss

    def __post_init__(self) -> None:
        if not self.conflict_weight >= 0:
            raise InputError(
                f"`conflict_weight` must be at least 0. Found {self.conflict_weight!r}."
            )

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel for every task.

        Raises:
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        penalised = self.conflict_weight > 0 and len(evidence.tasks) > 1
        statistics = collect(
            model, groups, evidence, with_gramian=penalised and self.conflict.needs_gramian
        )
        weights = torch.tensor([t.weight for t in evidence.tasks.values()], dtype=torch.float64)
        scale = weights * self.normalise(statistics)
        per_task = per_task_importance(statistics, scale)
        importance = self.aggregate(per_task)
        conflict: dict[str, Tensor] = {}
        total = importance
        if penalised:
            penalty = self.conflict(statistics, scale, importance)
            conflict = statistics.index.split(penalty)
            total = importance - self.conflict_weight * penalty
        return ChannelScores(
            criterion="task_taylor",
            tasks=statistics.tasks,
            per_task=statistics.index.split(per_task),
            total=statistics.index.split(total),
            conflict=conflict,
            n_batches=statistics.n_batches,
        )


def per_task_importance(statistics: TaskStatistics, scale: Tensor) -> Tensor:
    """Return each task's mean squared effect. Shape ``[T, C]``."""
    squares = statistics.products.diagonal(dim1=0, dim2=1).T  # [T, C]
    return squares * (scale.square() / statistics.n_labelled.diagonal())[:, None]
