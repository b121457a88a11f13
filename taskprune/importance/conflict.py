"""Two meanings of "the tasks disagree about this channel", as penalties on its score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from taskprune.importance.effects import TaskStatistics


class Conflict(Protocol):
    """A definition of conflict."""

    @property
    def needs_gramian(self) -> bool:
        """Whether it looks at ``TaskStatistics.gramian``."""

    def __call__(self, statistics: TaskStatistics, scale: Tensor, importance: Tensor, /) -> Tensor:
        """Return the penalty of each pair of tasks, in units of the score.

        Args:
            statistics: Sums over the calibration batches.
            scale: Factor of each task's effects, positive. Shape ``[T]``.
            importance: The tasks' scores after aggregation. Shape ``[C]``.

        Returns:
            At least 0; only entries above the diagonal of the first two dims. Their sum is the
            penalty. Shape ``[T, T, C]``.
        """


@dataclass(frozen=True)
class EffectConflict:
    r"""Opposite effects, :math:`\sum_{t<u} E_b[\max(0, -2 s_{b,t,c} s_{b,u,c})]`.

    The part of a channel's importance where taking it away lowers one task's loss and raises
    another's. Ours: it is what the square of the summed effect loses to cancellation, without what
    it gains from agreement. Batches in which only one of two tasks has labels do not count.
    """

    needs_gramian: ClassVar[bool] = False

    def __call__(self, statistics: TaskStatistics, scale: Tensor, _importance: Tensor, /) -> Tensor:
        """Return the penalty, see :class:`Conflict`."""
        jointly = statistics.n_labelled.clamp_min(1)
        factors = (2 * scale[:, None] * scale[None] / jointly).triu(diagonal=1)
        return factors[..., None] * statistics.opposition


@dataclass(frozen=True)
class CosineConflict:
    r"""Opposed gradients, :math:`I_c \cdot \frac{2}{T(T-1)} \sum_{t<u} \max(0, -\cos(g_t, g_u))`.

    With :math:`g_t` the gradient of task *t* on the channel's entries, averaged over the
    calibration batches first: cosines of single batches are mostly noise. The mean cosine lies in
    [0, 1] and takes a share of the aggregated importance :math:`I_c`. Our reading of the gradient
    conflict penalty named in Wang et al., arXiv:2511.05557, whose equation is not public.
    """

    needs_gramian: ClassVar[bool] = True

    def __call__(self, statistics: TaskStatistics, _scale: Tensor, importance: Tensor, /) -> Tensor:
        """Return the penalty, see :class:`Conflict`."""
        opposed = cosines(statistics).neg().clamp_min(0)
        upper = torch.ones(opposed.shape[:2], dtype=opposed.dtype, device=opposed.device).triu(
            diagonal=1
        )
        share = upper / upper.sum().clamp_min(1)
        return importance * share[..., None] * opposed


def of_pairs(conflict: Tensor) -> Tensor:
    """Return the entries above the diagonal, in the order of ``itertools.combinations``.

    Args:
        conflict: What a :class:`Conflict` returns. Shape ``[T, T, C]``.

    Returns:
        Shape ``[T (T - 1) / 2, C]``.
    """
    above = torch.triu_indices(len(conflict), len(conflict), offset=1, device="cpu")
    return conflict[above[0], above[1]]


def cosines(statistics: TaskStatistics) -> Tensor:
    """Return the cosines between the tasks' mean gradients on each channel.

    Zero where a task's gradient is zero. Shape ``[T, T, C]``.
    """
    gramian = statistics.gramian
    assert gramian is not None, "collect(..., with_gramian=True) comes before"
    norms = gramian.diagonal(dim1=0, dim2=1).T.clamp_min(0).sqrt()  # [T, C]
    lengths = norms[:, None] * norms[None]
    return torch.where(lengths > 0, gramian / lengths.clamp_min(torch.finfo().tiny), 0.0)
