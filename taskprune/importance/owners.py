"""Which outputs of a model belong to which task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from taskprune.errors import LossError
from taskprune.forward import Forward, call_batch
from taskprune.importance.calibration import differentiable, run_forward, task_loss
from taskprune.outputs import flatten_outputs, resolve_paths
from taskprune.tasks import Task


def output_owners(
    model: nn.Module,
    tasks: Mapping[str, Task],
    batch: Any,
    *,
    forward: Forward = call_batch,
) -> dict[str, tuple[str, ...]]:
    """Return the output paths of each task: those declared, or those its loss depends on.

    The model runs at most once, and only if some task declares no outputs. It is left as it was.

    Args:
        model: The model.
        tasks: The tasks by name.
        batch: One calibration batch, with labels of every task that declares no outputs.
        forward: ``(model, batch) -> outputs``.

    Returns:
        ``{task: output paths}``, see :func:`taskprune.graph.flatten_outputs` for what a path is.

    Raises:
        InputError: A declared output does not exist.
        TraceError: The model rejects the batch.
        LossError: A loss is no finite scalar, has no labels in this batch, or depends on no output.
    """
    declared = {name: task.output_paths for name, task in tasks.items()}
    if all(paths is not None for paths in declared.values()):
        # Whether they exist is checked by the trace, which knows the outputs without labels.
        return {name: paths for name, paths in declared.items() if paths is not None}
    with differentiable(model):
        outputs = run_forward(model, batch, forward, where="the first calibration batch")
        flat = flatten_outputs(outputs)
        owners: dict[str, tuple[str, ...]] = {}
        for name, task in tasks.items():
            paths = declared[name]
            owners[name] = (
                _receiving(name, task, outputs, batch)
                if paths is None
                else resolve_paths({name: paths}, flat)[name]
            )
    return owners


def _receiving(name: str, task: Task, outputs: Any, batch: Any) -> tuple[str, ...]:
    where = "the first calibration batch"
    loss = task_loss(name, task, outputs, batch, where=where)
    if loss is None:
        raise LossError(
            f"Task `{name}` has no labels in {where}, so the outputs it owns cannot be found from "
            "its loss. Declare them: Task(loss=..., outputs='path')."
        )
    flat = {path: t for path, t in flatten_outputs(outputs).items() if t.requires_grad}
    gradients = torch.autograd.grad(
        loss, tuple(flat.values()), retain_graph=True, allow_unused=True
    )
    owned = tuple(path for path, g in zip(flat, gradients, strict=True) if g is not None)
    if not owned:
        raise LossError(
            f"The loss of task `{name}` depends on none of the model's outputs "
            f"({', '.join(flat) or 'none of which carries a gradient'}). Declare what it owns: "
            "Task(loss=..., outputs='path')."
        )
    return owned
