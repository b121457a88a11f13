"""The backwards of one batch, task by task, and no longer than that its graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.errors import LossError


@dataclass(frozen=True, eq=False, slots=True)
class TaskGradients:
    """One task's part in one batch.

    Attributes:
        task: Row number of the task.
        loss: Its loss value.
        gradients: ``{parameter name: gradient of the loss}``; ``None`` where the loss does not
            depend on the parameter.
        watched: Gradients of the tensors of :class:`.calibration.Watch`, in its order.
    """

    task: int
    loss: float
    gradients: Mapping[str, Tensor | None]
    watched: tuple[Tensor | None, ...] = ()


def backwards(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    watched: tuple[Tensor, ...],
    losses: dict[str, Tensor],
    rows: Mapping[str, int],
    *,
    number: int,
) -> Iterator[TaskGradients]:
    """Differentiate the losses of one batch, one after the other.

    Args:
        model: The model.
        parameters: Those to differentiate by, by name.
        watched: Tensors inside the forward to differentiate by as well.
        losses: By task; emptied, so that each task's own part of the graph goes with its backward
            and what the tasks share with the last one's.
        rows: ``{task: row number}``.
        number: Of the batch, for errors.

    Raises:
        LossError: A backward fails, or a loss depends on no parameter.
    """
    inputs = (*parameters.values(), *watched)
    n_parameters = len(parameters)
    while losses:
        name = next(iter(losses))
        loss = losses.pop(name)
        value = float(loss.detach())
        try:
            found = _gradients(loss, inputs, retain_graph=bool(losses))
            if all(gradient is None for gradient in found):
                _check_attached(model, name, loss, number, retain_graph=bool(losses))
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
        gradients = dict(zip(parameters, found[:n_parameters], strict=True))
        yield TaskGradients(rows[name], value, gradients, tuple(found[n_parameters:]))


def _gradients(
    loss: Tensor, inputs: tuple[Tensor, ...], *, retain_graph: bool
) -> tuple[Tensor | None, ...]:
    if not inputs:
        return ()
    return torch.autograd.grad(loss, inputs, retain_graph=retain_graph, allow_unused=True)


def _check_attached(
    model: nn.Module, name: str, loss: Tensor, number: int, *, retain_graph: bool
) -> None:
    """A task may depend on parameters outside the groups only, but not on none at all."""
    everything = tuple(p for p in model.parameters() if p.requires_grad)
    found = _gradients(loss, everything, retain_graph=retain_graph)
    if all(gradient is None for gradient in found):
        raise LossError(
            f"The loss of task `{name}` does not depend on any parameter of the model on "
            f"calibration batch {number}. Compute it from the model's outputs."
        )
