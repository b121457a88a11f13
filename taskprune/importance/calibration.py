"""One forward and a backward per task for every calibration batch; no trace in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.errors import InputError, LossError, TaskPruneError, TraceError
from taskprune.forward import Forward
from taskprune.graph.borrow import borrowed
from taskprune.importance.scores import Evidence
from taskprune.tasks import Task


@dataclass(frozen=True, eq=False, slots=True)
class TaskGradients:
    """One task's part in one batch.

    Attributes:
        task: Row number of the task.
        loss: Its loss value.
        gradients: ``{parameter name: gradient of the loss}``; ``None`` where the loss does not
            depend on the parameter.
    """

    task: int
    loss: float
    gradients: Mapping[str, Tensor | None]


Visitor = Callable[[Iterator[TaskGradients]], None]
"""Called once per batch with the gradients of each task that has labels in it, one at a time."""


def for_each_batch(
    model: nn.Module, parameters: Mapping[str, Tensor], evidence: Evidence, visit: Visitor
) -> int:
    """Run the calibration batches and hand each task's gradients to ``visit``.

    The model runs in eval mode. Gradients are computed apart from ``.grad``; each task's are freed
    before the next task's are made unless ``visit`` keeps them. Training flags, ``requires_grad``
    (frozen parameters are scored as well), attributes that the forward stores in its modules and
    the random generators are given back, also after an exception.

    Args:
        model: The model.
        parameters: Those to differentiate by, by name.
        evidence: Tasks, batches and how a batch reaches the model.
        visit: Consumes one batch.

    Returns:
        How many batches there were.

    Raises:
        InputError: There are no tasks or no batches.
        TraceError: The model rejects a batch.
        LossError: A loss is not a finite scalar tensor attached to the model, or a task has no
            labels in any batch.
    """
    if not evidence.tasks:
        raise InputError(
            "This criterion needs the tasks' losses. Found no tasks: pass "
            "`tasks={'name': Task(loss=...)}` and `data=`, or choose a criterion that looks at "
            "weights alone, such as importance='magnitude'."
        )
    seen: set[str] = set()
    n_batches = 0
    with differentiable(model):
        for n_batches, batch in enumerate(evidence.batches, start=1):
            # A forward that caches a tensor made from parameters would otherwise hold on to the
            # graph of the first batch, which its backward has freed.
            with borrowed(model):
                losses = _losses(model, batch, n_batches, evidence)
                seen.update(losses)
                visit(_backwards(model, parameters, losses, n_batches, evidence.tasks))
            evidence.progress(n_batches)
    if n_batches == 0:
        raise InputError(
            "Expected at least one calibration batch. Found none: pass `data=`, a loader or list "
            "of batches (an iterator can be gone through only once)."
        )
    unlabelled = [name for name in evidence.tasks if name not in seen]
    if unlabelled:
        raise LossError(
            f"The loss of task `{unlabelled[0]}` returned None, which means no labels, for each of "
            f"the {n_batches} calibration batches. Pass batches that hold labels of every task."
        )
    return n_batches


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Eval mode and gradients for all parameters; everything is given back, also on error."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with borrowed(model):
        try:
            model.eval()
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.requires_grad_(True)
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


def run_forward(model: nn.Module, batch: Any, forward: Forward, *, where: str) -> Any:
    """Call the model on a batch.

    Raises:
        TraceError: It raised; the original error is chained.
    """
    try:
        return forward(model, batch)
    except TaskPruneError:
        raise
    except Exception as error:
        raise TraceError(
            f"The model failed on {where} (a {type(batch).__name__}): {type(error).__name__}: "
            f"{error}. Check that the loader yields what the model takes, or pass "
            "`forward=lambda model, batch: ...`."
        ) from error


def _losses(model: nn.Module, batch: Any, number: int, evidence: Evidence) -> dict[str, Tensor]:
    where = f"calibration batch {number}"
    outputs = run_forward(model, batch, evidence.forward, where=where)
    losses: dict[str, Tensor] = {}
    for name, task in evidence.tasks.items():
        loss = task_loss(name, task, outputs, batch, where=where)
        if loss is not None:
            losses[name] = loss
    return losses


def task_loss(name: str, task: Task, outputs: Any, batch: Any, *, where: str) -> Tensor | None:
    """Return a task's loss on one batch, ``None`` if it has no labels there.

    Raises:
        LossError: The loss fails, or is not a finite scalar tensor attached to the model.
    """
    try:
        loss: object = task.loss(outputs, batch)
    except TaskPruneError:
        raise
    except Exception as error:
        raise LossError(
            f"The loss of task `{name}` failed on {where}: {type(error).__name__}: {error}. It is "
            "called as loss(outputs, batch), with the model's outputs and the loader's batch."
        ) from error
    if loss is None:
        return None
    found = ""
    if not isinstance(loss, Tensor):
        found = f"a {type(loss).__name__}: return the tensor itself, without `.item()` or float()"
    elif loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}: reduce it, for example with `.mean()`"
    elif not bool(torch.isfinite(loss)):
        found = f"{loss.item()}: check this batch's labels and the loss for log(0) or 0/0"
    elif not loss.requires_grad:
        found = (
            "a tensor without a gradient: compute the loss from the model's outputs without "
            "`.detach()`, `.data` or `torch.no_grad()`"
        )
    if found:
        raise LossError(
            f"The loss of task `{name}` must be a finite scalar tensor attached to the model. "
            f"On {where} it is {found}."
        )
    assert isinstance(loss, Tensor)
    return loss.reshape(())


def _backwards(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    losses: Mapping[str, Tensor],
    number: int,
    tasks: Mapping[str, Task],
) -> Iterator[TaskGradients]:
    rows = {name: row for row, name in enumerate(tasks)}
    for name, loss in losses.items():
        try:
            found = _gradients(loss, tuple(parameters.values()))
            if all(gradient is None for gradient in found):
                _check_attached(model, name, loss, number)
        except RuntimeError as error:
            raise LossError(
                f"The backward of task `{name}` failed on calibration batch {number}: {error}"
            ) from error
        yield TaskGradients(
            rows[name], float(loss.detach()), dict(zip(parameters, found, strict=True))
        )


def _gradients(loss: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    if not inputs:
        return ()
    return torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)


def _check_attached(model: nn.Module, name: str, loss: Tensor, number: int) -> None:
    """A task may depend on parameters outside the groups only, but not on none at all."""
    everything = tuple(p for p in model.parameters() if p.requires_grad)
    if all(gradient is None for gradient in _gradients(loss, everything)):
        raise LossError(
            f"The loss of task `{name}` does not depend on any parameter of the model on "
            f"calibration batch {number}. Compute it from the model's outputs."
        )
