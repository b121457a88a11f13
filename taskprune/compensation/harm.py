"""Do no harm: what the tasks lose by is given back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward
from taskprune.calling.inputs import TaskBatch
from taskprune.calling.outputs import flatten_outputs
from taskprune.calling.task import Task
from taskprune.importance.calibration import run_forward
from taskprune.importance.distributed import summed
from taskprune.restore.borrow import entrusted
from taskprune.restore.lending import lent

PARTS = (8, 4, 2)
"""Into how many ranges of depth the readers are cut, the smallest first."""


@dataclass(frozen=True, eq=False, slots=True)
class Change:
    """What re-weighting one reader changed.

    Attributes:
        reader: Name of the parameter.
        tensors: ``(name, tensor of the smaller model, data before, data after)`` of the weight and
            of what took the shift.
    """

    reader: str
    tensors: tuple[tuple[str, Tensor, Tensor, Tensor], ...]

    def undo(self) -> None:
        """Give the sliced values back."""
        for _, tensor, before, _ in self.tensors:
            tensor.data = before

    def redo(self) -> None:
        """Put the new values in place."""
        for _, tensor, _, after in self.tensors:
            tensor.data = after


Losses = Mapping[str, float]
Measure = Callable[[], Losses]


def settle(changes: Sequence[Change], measure: Measure) -> tuple[Losses, Losses, frozenset[str]]:
    """Undo the smallest range of depth without which no task is worse off than as sliced.

    Args:
        changes: In the order of the forward pass; all of them done.
        measure: Returns each task's loss of the model as it stands.

    Returns:
        The losses as sliced, those of the model as it stands in the end, and which are undone.
    """
    now = measure()
    for change in changes:
        change.undo()
    sliced = measure()
    for change in changes:
        change.redo()
    if no_worse(now, sliced):
        return sliced, now, frozenset()
    for n_parts in PARTS:
        size = math.ceil(len(changes) / n_parts)
        for first in range(0, len(changes), size):
            part = changes[first : first + size]
            now = _without(part, measure)
            if no_worse(now, sliced):
                part, now = _narrowed(part, now, sliced, measure)
                for change in part:
                    change.undo()
                return sliced, now, frozenset(change.reader for change in part)
    for change in changes:
        change.undo()
    return sliced, sliced, frozenset(change.reader for change in changes)


def _without(part: Sequence[Change], measure: Measure) -> Losses:
    """Return the losses with some changes undone; they are done again."""
    for change in part:
        change.undo()
    now = measure()
    for change in part:
        change.redo()
    return now


def _narrowed(
    part: Sequence[Change], now: Losses, sliced: Losses, measure: Measure
) -> tuple[Sequence[Change], Losses]:
    """Return the half of a range that has to go, half of that, and so on, and the losses then."""
    while len(part) > 1:
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            found = _without(half, measure)
            if no_worse(found, sliced):
                part, now = half, found
                break
        else:
            break
    return part, now


def no_worse(losses: Losses, than: Losses) -> bool:
    """Return whether no loss is higher; what is no number is."""
    return all(value <= than[name] for name, value in losses.items())


def task_losses(
    model: nn.Module, tasks: Mapping[str, Task], batches: Sequence[Any], forward: Forward
) -> Losses:
    """Return the mean loss of each task over the batches of all processes."""
    if not tasks:
        return {}
    sums = torch.zeros(len(tasks), 2, dtype=torch.float64)
    for batch in batches:
        with torch.no_grad(), lent(batch), entrusted(model):
            outputs = run_forward(model, batch, forward, where="a calibration batch")
            own, inner = (batch.task, batch.batch) if isinstance(batch, TaskBatch) else ("", batch)
            for row, (name, task) in enumerate(tasks.items()):
                loss = task.loss(outputs, inner) if own in ("", name) else None
                if loss is not None:
                    sums[row] += torch.tensor([float(loss), 1.0], dtype=torch.float64)
    sums = summed(sums)
    return {
        name: float(total / count) if count else 0.0
        for name, (total, count) in zip(tasks, sums, strict=True)
    }


class OutputDistance:
    """How far each output is from the teacher's, in units of its spread; for data without labels.

    Values of rows that are other objects in either network are compared in ascending order.

    Args:
        teacher: Whose outputs are the measure.
        batches: What both run on.
        forward: How batches reach them.
        names: Of the outputs.
    """

    def __init__(
        self,
        teacher: nn.Module,
        batches: Sequence[Any],
        forward: Forward,
        names: Sequence[str],
    ) -> None:
        self.batches, self.forward, self.names = batches, forward, tuple(names)
        self._known = [self._outputs(teacher, batch) for batch in batches] if names else []

    def of(self, model: nn.Module) -> Losses:
        """Return the mean squared distance of each output."""
        if not self.names:
            return {}
        sums = torch.zeros(len(self.names), 2, dtype=torch.float64)
        for batch, known in zip(self.batches, self._known, strict=True):
            found = self._outputs(model, batch)
            for row, name in enumerate(self.names):
                if name in known and name in found and known[name].shape == found[name].shape:
                    difference = found[name].double() - known[name].double()
                    spread = known[name].double().var().clamp_min(1e-30)
                    distance = difference[difference.isfinite()].square().mean() / spread
                    sums[row] += torch.tensor([float(distance), 1.0], dtype=torch.float64)
        sums = summed(sums)
        return {n: float(t / c) if c else 0.0 for n, (t, c) in zip(self.names, sums, strict=True)}

    def _outputs(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        with torch.no_grad(), lent(batch), entrusted(model):
            outputs = flatten_outputs(
                run_forward(model, batch, self.forward, where="a calibration batch")
            )
        return {name: outputs[name].detach().clone() for name in self.names if name in outputs}
