"""Batches from which nothing can be learnt: no labels, and nothing of the teacher to follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from taskprune.distillation.batches import Position
from taskprune.errors import TrainingError


class _Nothing(torch.autograd.Function):
    """Zero, whose gradient is none at all: what is behind counts as not used."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:  # noqa: ARG004 - autograd hands it in
        """Return zero."""
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> Any:
        """Return no gradients."""
        return (None,) * len(ctx.needs_input_grad)


def nothing(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return a loss that teaches nothing, for a process whose fellows wait in the backward pass.

    A product with zero would make NaN of infinity, and would have AdamW move what no batch used.

    Args:
        tensors: What the student's forward pass returned.

    Returns:
        The loss; ``None`` where no tensor depends on a trainable parameter.
    """
    attached = [tensor for tensor in tensors if tensor.requires_grad]
    if not attached:
        return None
    loss: Tensor = _Nothing.apply(*attached)  # type: ignore[no-untyped-call]
    return loss


class IdleSteps:
    """Tells some batches without labels from data that teach nothing at all.

    Args:
        n_steps: Length of the run.
    """

    def __init__(self, n_steps: int) -> None:
        self._n_steps = n_steps
        self._since: tuple[int, Position] | None = None

    def see(self, step: int, first: Position, last: Position, *, is_idle: bool) -> None:
        """Take in step number ``step`` (from 0) and its first and last batch.

        Raises:
            TrainingError: Nothing was learnt in a pass through the data, or in the whole run.
        """
        if not is_idle:
            self._since = None
            return
        began, start = self._since = self._since or (step, first)
        is_a_pass = (last.epoch, last.batch + 1) >= (start.epoch + 1, start.batch)
        is_all = began == 0 and step + 1 == self._n_steps
        if is_a_pass or is_all:
            raise TrainingError(
                f"Step {step + 1}: there was nothing to learn from step {began + 1} on, in "
                f"{'a whole pass through the data' if is_a_pass else 'the whole run'}. No task has "
                "labels, and no features or outputs that depend on a trainable parameter are "
                "compared. Add taps or labels, end the run sooner, or keep `feature_weight` above "
                "0."
            )
