"""The backwards of one batch, task by task, and no longer than that its graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.errors import LossError
from taskprune.importance.half_precision import LossScale


@dataclass(frozen=True, eq=False, slots=True)
class TaskGradients:
    """One task's part in one batch.

    Attributes:
        task: Row number of the task.
        name: Its name.
        batch: Number of the batch, from 1.
        loss: Its loss value.
        gradients: ``{parameter name: gradient of the loss}``; ``None`` where the loss does not
            depend on the parameter.
        scale: What the loss was multiplied by in the backward, for whoever listens inside of it;
            ``gradients`` are divided by it.
    """

    task: int
    name: str
    batch: int
    loss: float
    gradients: Mapping[str, Tensor | None]
    scale: float = 1.0


def backwards(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    losses: dict[str, Tensor],
    scales: Mapping[str, LossScale],
    *,
    number: int,
) -> Iterator[TaskGradients]:
    """Differentiate the losses of one batch, one after the other.

    Args:
        model: The model.
        parameters: Those to differentiate by, by name.
        losses: By task; emptied, so that each task's own part of the graph goes with its backward
            and what the tasks share with the last one's.
        scales: That of each task of the run, in the order of their rows.
        number: Of the batch, for errors.

    Raises:
        LossError: A backward fails, or a loss depends on no parameter.
    """
    inputs = tuple(parameters.values())
    rows = {name: row for row, name in enumerate(scales)}
    while losses:
        name = next(iter(losses))
        loss = losses.pop(name)
        value = float(loss.detach())
        try:
            found = scales[name].gradients(loss, inputs, retain_graph=bool(losses))
            if all(gradient is None for gradient in found):
                _check_attached(model, name, loss, number)
        except RuntimeError as error:
            hint = (
                " Pass `use_reentrant=False` to `torch.utils.checkpoint.checkpoint`."
                if "use_reentrant" in str(error)
                else ""
            )
            raise LossError(
                f"The backward of task `{name}` failed on calibration batch {number}: {error}{hint}"
            ) from error
        del loss
        gradients = dict(zip(parameters, found, strict=True))
        yield TaskGradients(rows[name], name, number, value, gradients, scales[name].used)


def _check_attached(model: nn.Module, name: str, loss: Tensor, number: int) -> None:
    """A task may depend on parameters outside the groups only, but not on none at all."""
    everything = tuple(p for p in model.parameters() if p.requires_grad)
    if not everything or all(
        gradient is None
        for gradient in torch.autograd.grad(loss, everything, retain_graph=True, allow_unused=True)
    ):
        raise LossError(
            f"The loss of task `{name}` does not depend on any parameter of the model on "
            f"calibration batch {number}. Compute it from the model's outputs."
        )
