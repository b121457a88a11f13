"""Do no harm: what the tasks lose by is given back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward
from taskprune.calling.inputs import TaskBatch
from taskprune.calling.outputs import flatten_outputs
from taskprune.calling.task import Task
from taskprune.importance.calibration import run_forward
from taskprune.importance.distributed import summed
from taskprune.importance.projections import Projection
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
            of what took the shift. Data is written in place: a forward that stands in the middle
            may hold transposed or picked views of it.
    """

    reader: str
    tensors: tuple[tuple[str, Tensor, Tensor, Tensor], ...]

    def undo(self) -> None:
        """Give the sliced values back."""
        for _, tensor, before, _ in self.tensors:
            tensor.copy_(before)

    def redo(self) -> None:
        """Put the new values in place."""
        for _, tensor, _, after in self.tensors:
            tensor.copy_(after)


Losses: TypeAlias = Mapping[str, float]
Measure: TypeAlias = Callable[[], Losses]


def settle(
    changes: Sequence[Change], measure: Measure, now: Losses
) -> tuple[Losses, Losses, frozenset[str]]:
    """Undo the smallest range of depth without which no task is worse off than as sliced.

    Args:
        changes: In the order of the forward pass; all of them done.
        measure: Returns each task's loss of the model as it stands.
        now: The losses with all changes done.

    Returns:
        The losses as sliced, those of the model as it stands in the end, and which are undone.
    """
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


Run: TypeAlias = tuple[Any, Any]
"""What a model made of a batch, and the batch as it left it."""


def runs(model: nn.Module, batches: Sequence[Any], forward: Forward) -> Iterator[Run]:
    """Run a model on each batch; batch and model are as they were once the next is asked for."""
    for batch in batches:
        with torch.no_grad(), lent(batch), entrusted(model):
            yield run_forward(model, batch, forward, where="a calibration batch"), batch


class Harm:
    """Measures what the tasks lose.

    Of tasks with labels it is the loss. The value of a projection means nothing, so that what it
    projects is compared with the teacher's, in units of its spread; values of rows that are other
    objects in either network in ascending order.

    Args:
        tasks: Whose losses count.
        teacher: What the teacher made of each batch.
    """

    def __init__(self, tasks: Mapping[str, Task], teacher: Iterable[Any]) -> None:
        outputs = {n: t.loss.paths for n, t in tasks.items() if isinstance(t.loss, Projection)}
        self._labelled = {name: task for name, task in tasks.items() if name not in outputs}
        self._paths = tuple(dict.fromkeys(path for own in outputs.values() for path in own))
        self._teacher = [self._compared(made) for made in teacher] if self._paths else []

    def of(self, found: Iterable[Run]) -> Losses:
        """Return the mean over the batches of all processes, by task or output."""
        sums = torch.zeros(
            len(self._labelled) + len(self._paths), 2, dtype=torch.float64, device="cpu"
        )
        for number, (outputs, batch) in enumerate(found):
            with torch.no_grad():
                values = [*self._losses(outputs, batch), *self._distances(outputs, number)]
            for row, value in enumerate(values):
                if value is not None:
                    sums[row] += torch.tensor(
                        [float(value), 1.0], dtype=torch.float64, device="cpu"
                    )
        totals = zip((*self._labelled, *self._paths), summed(sums), strict=True)
        return {name: float(total / n) if n else 0.0 for name, (total, n) in totals}

    def _losses(self, outputs: Any, batch: Any) -> Iterator[Tensor | None]:
        own, inner = (batch.task, batch.batch) if isinstance(batch, TaskBatch) else ("", batch)
        for name, task in self._labelled.items():
            yield task.loss(outputs, inner) if own in ("", name) else None

    def _distances(self, outputs: Any, number: int) -> Iterator[Tensor | None]:
        if not self._paths:
            return
        known, found = self._teacher[number], self._compared(outputs)
        for path in self._paths:
            if path in known and path in found and known[path].shape == found[path].shape:
                difference = found[path].double() - known[path].double()
                spread = known[path].double().var().clamp_min(1e-30)
                yield difference[difference.isfinite()].square().mean() / spread
            else:
                yield None

    def _compared(self, outputs: Any) -> dict[str, Tensor]:
        flat = flatten_outputs(outputs)
        return {path: flat[path].detach().clone() for path in self._paths if path in flat}
