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
from taskprune.importance.pareto import front_numbers

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


def top_k(k: int) -> Aggregation:
    """Return the mean of the ``k`` tasks that a channel matters most to.

    With 1 it is :func:`maximum`, with all tasks :func:`mean`.

    Args:
        k: At least 1; with fewer tasks all of them count.
    """
    if k < 1:
        raise InputError(f"`top_k` takes how many tasks count, at least 1. Found {k!r}.")

    def aggregate(scores: Tensor) -> Tensor:
        return scores.topk(min(k, len(scores)), dim=0).values.mean(dim=0)

    return aggregate


def pareto_rank(scores: Tensor) -> Tensor:
    """Front of non-dominated sorting, from 0 for channels that no other is below in all tasks.

    A channel lies in front ``n`` if the longest chain of channels, each below the next (nowhere
    above it, somewhere below), that ends in it has ``n`` others. Only the order within each task
    matters, so no common scale of the tasks is needed; equal channels share a front. The penalty
    for conflict is in units of scores: use it with ``conflict_weight=0``.
    """
    return torch.from_numpy(front_numbers(scores.detach().cpu().numpy().T)).to(scores)


def worst_task(scores: Tensor) -> Tensor:
    """Largest over tasks of the channel's share of what the task would lose over all channels.

    Each task is put on the scale of its own sum first. That makes a task with much redundancy as
    loud as one with little, so prefer :func:`total` where the losses are on one scale.
    """
    sums = scores.sum(dim=1, keepdim=True)
    return (scores / torch.where(sums > 0, sums, torch.ones_like(sums))).amax(dim=0)
