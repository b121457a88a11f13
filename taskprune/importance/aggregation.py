"""How the tasks' scores become one: functions ``[n_tasks, n_channels] -> [n_channels]``.

Any function of this form can be handed to ``TaskTaylorImportance(aggregate=...)``. Rows come in
the tasks' order, with the tasks' weights already in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

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
