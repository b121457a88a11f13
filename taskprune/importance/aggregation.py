"""How the tasks' scores become one: functions ``[n_tasks, n_channels] -> [n_channels]``.

Any function of this form can be handed to ``TaskTaylorImportance(aggregate=...)``. Rows come in
the tasks' order, with the tasks' weights already in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from taskprune.errors import InputError

Aggregation: TypeAlias = Callable[[Tensor], Tensor]
"""``[n_tasks, n_channels] -> [n_channels]``."""


def total(scores: Tensor) -> Tensor:
    """Sum over tasks."""
    return scores.sum(dim=0)


def mean(scores: Tensor) -> Tensor:
    """Mean over tasks."""
    return scores.mean(dim=0)


def maximum(scores: Tensor) -> Tensor:
    """Largest over tasks: a channel stays if any single task needs it."""
    return scores.amax(dim=0)


def weighted(weights: Sequence[float]) -> Aggregation:
    """Return a weighted sum over tasks.

    Args:
        weights: One factor per task, in the tasks' order.
    """

    def aggregate(scores: Tensor) -> Tensor:
        if len(weights) != len(scores):
            raise InputError(
                f"`weighted` was given {len(weights)} weights; there are {len(scores)} tasks."
            )
        factors = torch.tensor(list(weights), dtype=scores.dtype, device=scores.device)
        return (factors[:, None] * scores).sum(dim=0)

    return aggregate


def worst_task(scores: Tensor) -> Tensor:
    """Largest over tasks of the channel's share of what the task would lose over all channels.

    Each task is put on the scale of its own sum first. That makes a task with much redundancy as
    loud as one with little, so prefer :func:`total` where the losses are on one scale.
    """
    sums = scores.sum(dim=1, keepdim=True)
    return (scores / torch.where(sums > 0, sums, torch.ones_like(sums))).amax(dim=0)
