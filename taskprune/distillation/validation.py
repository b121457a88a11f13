"""Measure task metrics now and then while training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.placing import on_device
from taskprune.calling.task import Task, check_validation, no_validation_batch
from taskprune.distillation.history import StepRecord, as_figure
from taskprune.errors import InputError
from taskprune.restore import evaluating
from taskprune.restore.lending import lent


@dataclass(frozen=True)
class Validation:
    """A callback that puts every task's metric into the history as ``"validation/<task>"``.

    Example:
        >>> DistillSettings(steps=1000, callbacks=(Validation(tasks, held_out, every=200),))

    Attributes:
        tasks: Those without a metric are left out.
        data: Validation batches, gone through in each measurement; they are moved to the student's
            device.
        every: Steps between measurements.
        forward: ``(model, batch) -> outputs``.
    """

    tasks: Mapping[str, Task]
    data: Iterable[Any] = field(repr=False)
    every: int
    forward: Forward = call_batch

    def __post_init__(self) -> None:
        if self.every < 1 or all(task.metric is None for task in self.tasks.values()):
            raise InputError(
                "`Validation` needs `every` of at least 1 and a task with a metric. Found "
                f"every={self.every} and tasks {list(self.tasks)}."
            )
        check_validation(self.data, "in each measurement")

    def __call__(self, record: StepRecord, student: nn.Module) -> dict[str, float]:
        """Measure, if it is time."""
        return {} if record.step % self.every else self.measured(student)

    def measured(self, model: nn.Module) -> dict[str, float]:
        """Return the figures of a model, whose training flags are given back."""
        found = measure(model, self.tasks, self.data, forward=self.forward)
        return {f"validation/{name}": value for name, value in found.items()}


def measure(
    model: nn.Module,
    tasks: Mapping[str, Task],
    data: Iterable[Any],
    *,
    forward: Forward = call_batch,
) -> dict[str, float]:
    """Return every task's metric on the data, in eval mode; tasks without a metric are left out.

    The model and its training flags are left as they were. Batches are moved to its device.

    Args:
        model: The model to measure.
        tasks: Metrics by task.
        data: Batches; not gone through where no task has a metric.
        forward: ``(model, batch) -> outputs``.

    Raises:
        InputError: There is no batch, or a metric's value is no single number.
    """
    metrics = {n: t.metric for n, t in tasks.items() if t.metric is not None}
    if not metrics:
        return {}
    device = next(model.parameters()).device
    for metric in metrics.values():
        metric.reset()
    is_empty = True
    with evaluating(model), torch.no_grad():
        for stored in data:
            is_empty = False
            batch = on_device(stored, device)
            with lent(batch):  # to a model that may write to it; the next time comes
                outputs = forward(model, batch)
                for metric in metrics.values():
                    metric.update(outputs, batch)
    if is_empty:  # what metrics say of nothing is no measurement, and zero is no loss of quality
        raise no_validation_batch()
    return {
        name: as_figure(metric.compute(), f"The metric of task `{name}`")
        for name, metric in metrics.items()
    }
