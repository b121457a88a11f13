"""Which outputs of a model belong to which task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.inputs import ModelInputs, TaskBatch
from taskprune.calling.outputs import flatten_outputs, matching_paths, resolve_paths
from taskprune.calling.task import Task
from taskprune.errors import LossError
from taskprune.importance.calibration import differentiable, run_forward, task_loss
from taskprune.importance.projections import output_tasks
from taskprune.restore.lending import lent

LOOK_AHEAD = 16
"""In how many batches labels of every task are looked for at most; all are kept meanwhile."""


def find_owners(
    model: nn.Module, tasks: Mapping[str, Task], inputs: ModelInputs, *, n_batches: int | None
) -> tuple[Mapping[str, Task], dict[str, tuple[str, ...]], ModelInputs]:
    """Return the tasks, the outputs of each, and the inputs with no batch lost in finding them.

    Without tasks every output of the first batch is one, where there is a batch.

    Args:
        model: The model.
        tasks: The tasks by name.
        inputs: What to run it on.
        n_batches: How many batches may be looked at.

    Raises:
        InputError, TraceError, LossError: See :func:`output_owners`.
    """
    if inputs.batches is None:
        owners = output_owners(model, tasks, inputs.example, forward=inputs.on_example)
        return tasks, owners, inputs
    if not tasks:
        batches = iter(inputs.batches)
        first = next(batches)
        tasks = output_tasks(model, first, forward=inputs.forward)
        inputs = replace(inputs, batches=chain([first], batches))
    if not inputs.task_examples:
        owners, left = owners_from_batches(
            model, tasks, inputs.batches or (), forward=inputs.forward, n_batches=n_batches
        )
        return tasks, owners, replace(inputs, batches=left)
    owners = {}
    for name, batch in inputs.task_examples.items():
        owners |= output_owners(model, {name: tasks[name]}, batch, forward=inputs.forward)
    return tasks, {name: owners[name] for name in tasks}, inputs


def owners_from_batches(
    model: nn.Module,
    tasks: Mapping[str, Task],
    batches: Iterable[Any],
    *,
    forward: Forward = call_batch,
    n_batches: int | None = None,
) -> tuple[dict[str, tuple[str, ...]], Iterator[Any]]:
    """Do :func:`output_owners` with the first batch that has labels of each task.

    Args:
        model: The model.
        tasks: The tasks by name.
        batches: Calibration batches, gone through only until every task had labels.
        forward: ``(model, batch) -> outputs``.
        n_batches: How many may be looked at; at most :data:`LOOK_AHEAD` are.

    Returns:
        The owned paths, and all batches, those that were looked at included.

    Raises:
        InputError, TraceError, LossError: See :func:`output_owners`.
    """
    remaining = iter(batches)
    seen: list[Any] = []
    owners: dict[str, tuple[str, ...]] = {}
    returned: dict[str, None] = {}
    for batch in islice(remaining, min(n_batches or LOOK_AHEAD, LOOK_AHEAD)):
        seen.append(batch)
        missing = {name: task for name, task in tasks.items() if name not in owners}
        where = f"calibration batch {len(seen)}"
        owners |= _found(model, missing, batch, forward, returned, where=where)
        if len(owners) == len(tasks):
            break
    several = f"the first {len(seen)} calibration batches"
    where = several if len(seen) > 1 else "the first calibration batch"
    _check_all_found(tasks, owners, returned, where)
    return {name: owners[name] for name in tasks}, chain(seen, remaining)


def output_owners(
    model: nn.Module,
    tasks: Mapping[str, Task],
    batch: Any,
    *,
    forward: Forward = call_batch,
) -> dict[str, tuple[str, ...]]:
    """Return the output paths of each task: those declared, or those its loss depends on.

    The model runs at most once, and only if some task declares no outputs. Model and batch are left
    as they were.

    Args:
        model: The model.
        tasks: The tasks by name.
        batch: One calibration batch, with labels of every task that declares no outputs.
        forward: ``(model, batch) -> outputs``.

    Returns:
        ``{task: output paths}``, see :func:`taskprune.calling.flatten_outputs` for what a path is.

    Raises:
        InputError: A declared output does not exist.
        TraceError: The model rejects the batch.
        LossError: A loss is no finite scalar, has no labels in this batch, or depends on no output.
    """
    where = "the first calibration batch"
    returned: dict[str, None] = {}
    owners = _found(model, tasks, batch, forward, returned, where=where)
    _check_all_found(tasks, owners, returned, where)
    return owners


def _found(
    model: nn.Module,
    tasks: Mapping[str, Task],
    batch: Any,
    forward: Forward,
    returned: dict[str, None],
    *,
    where: str,
) -> dict[str, tuple[str, ...]]:
    """Return the output paths of each task whose own are returned or that has labels in the batch.

    The paths of all outputs are added to `returned`.
    """
    declared = {name: task.output_paths for name, task in tasks.items()}
    if all(paths is not None for paths in declared.values()):
        # Whether they exist is checked by the trace, which knows the outputs without labels.
        return {name: paths for name, paths in declared.items() if paths is not None}
    if isinstance(batch, TaskBatch):  # holds labels of one task only
        tasks = {name: task for name, task in tasks.items() if name == batch.task}
        batch = batch.batch
    with lent(batch), differentiable(model):
        outputs = run_forward(model, batch, forward, where=where)
        flat = flatten_outputs(outputs)
        returned.update(dict.fromkeys(flat))
        owners: dict[str, tuple[str, ...]] = {}
        for name, task in tasks.items():
            paths = declared[name]
            if paths is not None:
                if all(matching_paths(path, flat) for path in paths):
                    owners[name] = resolve_paths({name: paths}, flat)[name]
                continue
            loss = task_loss(name, task, outputs, batch, where=where)
            if loss is not None:
                owners[name] = _receiving(name, loss, outputs)
    return owners


def _check_all_found(
    tasks: Mapping[str, Task],
    owners: Mapping[str, tuple[str, ...]],
    returned: Iterable[str],
    where: str,
) -> None:
    for name, task in tasks.items():
        if name in owners:
            continue
        if task.output_paths is not None:
            resolve_paths({name: task.output_paths}, returned)  # says what there is
        raise LossError(
            f"Task `{name}` has no labels in {where}, so the outputs it owns cannot be found from "
            "its loss. Declare them: Task(loss=..., outputs='path')."
        )


def _receiving(name: str, loss: Tensor, outputs: Any) -> tuple[str, ...]:
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
