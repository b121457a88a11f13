"""How effects on several losses are brought onto one scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taskprune.errors import LossError
from taskprune.importance.effects import TaskStatistics

Normalisation = Callable[[TaskStatistics], Tensor]
"""Returns a positive factor for the effects of each task. Shape ``[T]``, float64."""

LEAST_STAKE = 0.1
"""Part of its own loss that a task has to lose at the least: one that is hardly better than a guess
would be as loud as one that is good."""


def by_stake(statistics: TaskStatistics) -> Tensor:
    r"""Divide each task's effects by what it has to lose, :math:`L_t(0) - L_t`. Ours.

    :math:`L_t(0)` is its loss with all channels silenced
    (:class:`~taskprune.importance.stakes.Stakes`). An effect is then a share of what the channels
    together are worth to the task; multiplying its loss by a constant changes nothing, and adding
    one changes nothing as long as the stake is above a tenth of the loss: no task counts as having
    less than that to lose, so that one that is hardly better than a guess is not as loud as one
    that is good. A loss that is still large where the task is done well, such as that of thin
    lines, would make its effects look small beside itself (:func:`by_mean_loss`), although a little
    more of it is all there is to lose. Where a stake is not known, because model or loss cannot do
    without features, the loss itself stands in.

    A single task is left as it is: there is no other to be brought onto one scale with.

    Raises:
        LossError: A task has nothing to lose and no loss although channels have an effect on it.
    """
    if len(statistics.tasks) == 1:
        return torch.ones(1, dtype=torch.float64, device="cpu")
    assert statistics.stakes is not None, "collect(..., with_stakes=True) comes before"
    stakes, losses = statistics.stakes, statistics.mean_loss
    known = torch.maximum(stakes, LEAST_STAKE * losses)
    return _over(torch.where(stakes.isnan(), losses, known), statistics)


def by_mean_loss(statistics: TaskStatistics) -> Tensor:
    """Divide each task's effects by its mean absolute loss over the calibration batches.

    An effect is then a relative change of the loss, and multiplying a loss by a constant changes
    nothing. Dividing by a task's mean *score* would do that too, but makes a task that hardly
    depends on most channels as loud as one that does. A single task is left as it is.

    Raises:
        LossError: A task's loss is 0 on all batches although channels have an effect on it.
    """
    if len(statistics.tasks) == 1:
        return torch.ones(1, dtype=torch.float64, device="cpu")
    return _over(statistics.mean_loss, statistics)


def as_they_are(statistics: TaskStatistics) -> Tensor:
    """Leave the losses on the scales they come in."""
    return torch.ones(len(statistics.tasks), dtype=torch.float64, device="cpu")


def _over(amounts: Tensor, statistics: TaskStatistics) -> Tensor:
    """Return one over the amounts, and 1 for tasks that no channel has an effect on."""
    silent = (statistics.products.diagonal(dim1=0, dim2=1).T == 0).all(dim=1)
    for name, amount, is_silent in zip(
        statistics.tasks, amounts.tolist(), silent.tolist(), strict=True
    ):
        if amount == 0 and not is_silent:
            raise LossError(
                f"The loss of task `{name}` is 0 on every calibration batch, yet its gradient is "
                "not, so its effects cannot be put in relation to it. Return a loss that measures "
                "the error, or pass TaskTaylorImportance(normalise=as_they_are)."
            )
    # A task that was not seen yet has neither loss nor effects.
    return torch.where(silent, 1.0, 1 / amounts)
