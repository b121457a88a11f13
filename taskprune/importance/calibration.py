"""One forward and a backward per task for every calibration batch; no trace in the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward
from taskprune.calling.inputs import TaskBatch
from taskprune.calling.task import Task
from taskprune.errors import InputError, LossError, TaskPruneError, TraceError
from taskprune.importance.backwards import TaskGradients, backwards
from taskprune.importance.distributed import gathered, several_processes
from taskprune.importance.half_precision import LossScale
from taskprune.importance.scores import Evidence, probe_name
from taskprune.restore.borrow import borrowed
from taskprune.restore.lending import lent
from taskprune.restore.process import without_reentrance

_log = logging.getLogger("taskprune")

UNSETTLED = (
    "The ranking of the channels was not stable yet after all %d calibration batches. More batches "
    "may change which channels go."
)
"""Where ``calibrate="auto"`` ran out of data."""

Visitor = Callable[[Iterator[TaskGradients]], None]
"""Called once per batch with the gradients of each task that has labels in it, one at a time."""


Afterwards = Callable[[Any, Mapping[int, float]], None]
"""Called with a batch and ``{row of a task: its loss}`` once its graph is freed."""


def for_each_batch(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    evidence: Evidence,
    visit: Visitor,
    *,
    interim: Callable[[], Tensor] | None = None,
    afterwards: Afterwards | None = None,
) -> int:
    """Run the calibration batches and hand each task's gradients to ``visit``.

    The model runs in eval mode. Gradients are computed apart from ``.grad``; each task's are freed
    before the next task's are made unless ``visit`` keeps them. Training flags, ``requires_grad``
    (frozen parameters are scored as well), attributes that the forward stores in its modules, what
    model or losses write to a batch, and the random generators are given back, also after an
    exception. Under several processes each runs its own batches; if one fails, all raise.

    Where something is float16, losses are scaled meanwhile so that small gradients do not vanish,
    and gradients are float32; a task whose gradients are all 0 is told in the log.

    Args:
        model: The model.
        parameters: Those to differentiate by, by name.
        evidence: Tasks, batches and how a batch reaches the model.
        visit: Consumes one batch.
        interim: Returns the total scores so far, for ``evidence.settled``.
        afterwards: May run the model on the batch again.

    Returns:
        How many batches there were, in all processes together.

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
    run = _Run()
    rows = evidence.rows
    scales = {name: LossScale() for name in rows}
    try:
        with differentiable(model):
            for run.n_batches, batch in enumerate(evidence.batches, start=1):
                # A forward that caches a tensor made from parameters would otherwise hold on to
                # the graph of the first batch, which its backward has freed.
                with borrowed(model):
                    losses = _one_batch(
                        model, parameters, batch, run.n_batches, evidence, visit, scales
                    )
                    run.seen.update(losses)
                    if afterwards:
                        afterwards(batch, {rows[name]: loss for name, loss in losses.items()})
                evidence.progress(run.n_batches)
                if _is_settled(run.n_batches, evidence, interim):
                    break
            else:
                if evidence.settled is not None and interim is not None:
                    _log.warning(UNSETTLED, run.n_batches)
    except Exception as error:
        if several_processes():
            # The others wait for this one where the sums are added up.
            gathered(_Run(failure=f"{type(error).__name__}: {error}"))
        raise
    run.silent = {name for name, scale in scales.items() if scale.is_silent}
    run.loud = {name for name, scale in scales.items() if scale.is_silent is False}
    return _finished(gathered(run), evidence)


def _one_batch(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    batch: Any,
    number: int,
    evidence: Evidence,
    visit: Visitor,
    scales: Mapping[str, LossScale],
) -> dict[str, float]:
    """Visit one batch and return its losses; nothing holds its graph any more after that."""
    watch = evidence.watch if evidence.watch and evidence.watch.wants(evidence.tasks) else None
    with lent(batch):
        with watch.recording(model, batch) if watch else nullcontext():
            losses = _losses(model, batch, evidence, where=f"calibration batch {number}")
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        gradients = backwards(model, parameters, losses, scales, number=number)
        visit(watch.listening(gradients) if watch else gradients)
    return values


def _is_settled(n_batches: int, evidence: Evidence, interim: Callable[[], Tensor] | None) -> bool:
    if evidence.settled is None or interim is None:
        return False
    return evidence.settled(n_batches, interim())


@dataclass
class _Run:
    """What one process did."""

    n_batches: int = 0
    seen: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    loud: set[str] = field(default_factory=set)
    failure: str = ""


def _finished(runs: Sequence[_Run], evidence: Evidence) -> int:
    for rank, run in enumerate(runs):
        if run.failure:
            raise LossError(f"Scoring failed in process {rank} of {len(runs)}: {run.failure}")
    n_batches = sum(run.n_batches for run in runs)
    seen = set[str]().union(*(run.seen for run in runs))
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
    loud = set[str]().union(*(run.loud for run in runs))
    for name in evidence.tasks:
        if name not in loud and any(name in run.silent for run in runs):
            _log.warning(
                "All gradients of task `%s` are exactly 0 on each of the %d calibration batches, "
                "so no channel counts for it. Is its loss flat, or so small that they vanish? "
                "Multiplying a loss by a constant changes no scores of the default criterion.",
                name,
                n_batches,
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
            with torch.inference_mode(False), torch.enable_grad(), without_reentrance():
                yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


def run_forward(model: nn.Module, batch: Any, forward: Forward, *, where: str) -> Any:
    """Call the model on a batch, one of a task's own loader included.

    Raises:
        TraceError: It raised; the original error is chained.
    """
    if isinstance(batch, TaskBatch):
        batch = batch.batch
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


def weighted_loss(model: nn.Module, batch: Any, evidence: Evidence, *, where: str) -> Tensor | None:
    """Return the sum of the tasks' losses times their weights, ``None`` without any labels.

    Args:
        model: The model, in the mode it is to run in.
        batch: As the evidence yields it.
        evidence: Tasks, and how a batch reaches the model.
        where: What to call the batch in errors.

    Raises:
        TraceError: The model rejects the batch.
        LossError: A loss fails, or is not a finite scalar tensor attached to the model.
    """
    losses = _losses(model, batch, evidence, where=where)
    weighted = [evidence.tasks[name].weight * loss for name, loss in losses.items()]
    return torch.stack(weighted).sum() if weighted else None


def _losses(model: nn.Module, batch: Any, evidence: Evidence, *, where: str) -> dict[str, Tensor]:
    outputs = run_forward(model, batch, evidence.forward, where=where)
    named: Collection[str] = evidence.tasks
    if isinstance(batch, TaskBatch):
        named, batch = (batch.task,), batch.batch
    losses: dict[str, Tensor] = {}
    for name in named:
        loss = task_loss(name, evidence.tasks[name], outputs, batch, where=where)
        if loss is not None:
            losses[name] = loss
    for name, probe in evidence.probes.items():
        probed = probe(outputs, losses[name]) if name in losses else None
        if probed is not None:
            losses[probe_name(name)] = probed
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
