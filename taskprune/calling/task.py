"""What a task is: a loss on (outputs, batch), and what its user expects of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from operator import length_hint
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from taskprune.errors import InputError, short


@runtime_checkable
class Metric(Protocol):
    """Accumulates over batches; a higher value is better (the torchmetrics life cycle)."""

    def reset(self) -> None:
        """Forget all batches seen."""

    def update(self, outputs: Any, batch: Any, /) -> None:
        """Take in one batch and the model's outputs on it."""

    def compute(self) -> float:
        """Return the value over all batches since the last reset; a tensor of one is fine."""


@dataclass(frozen=True)
class Task:
    """One job of a multi-task model.

    Attributes:
        loss: ``(outputs, batch) -> scalar tensor``, differentiable in the model's parameters.
            Return ``None`` for a batch that carries no labels of this task.
        outputs: Paths of the model outputs that belong to this task, such as ``"lane"`` or
            ``"detection.boxes"`` (a prefix takes everything below it). ``None``: found from which
            outputs receive a gradient of the loss.
        weight: Factor of this task wherever losses or scores of tasks are added up.
        metric: Quality on validation data, higher is better. Optional.
        tolerance: How much of ``metric`` may be lost. Optional.
    """

    loss: Callable[[Any, Any], Tensor | None]
    outputs: str | tuple[str, ...] | None = None
    weight: float = 1.0
    metric: Metric | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise InputError(
                f"`Task.loss` must be a function (outputs, batch) -> scalar tensor. "
                f"Found {type(self.loss).__name__}."
            )
        if not (_is_number(self.weight) and math.isfinite(self.weight) and self.weight > 0):
            raise InputError(
                f"`Task.weight` must be a positive number. Found {short(self.weight)}."
            )
        if self.tolerance is not None and not (_is_number(self.tolerance) and self.tolerance >= 0):
            raise InputError(f"`Task.tolerance` must be at least 0. Found {short(self.tolerance)}.")
        if self.outputs is not None and not _are_paths(self.outputs):
            raise InputError(
                "`Task.outputs` must be a path such as 'detection.boxes', a tuple of paths, or "
                f"None to have them found from the loss. Found {short(self.outputs)}."
            )
        if self.metric is not None and not isinstance(self.metric, Metric):
            raise InputError(
                "`Task.metric` must be an object with `reset`, `update` and `compute`. Found "
                f"{type(self.metric).__name__}."
            )

    @property
    def output_paths(self) -> tuple[str, ...] | None:
        """The owned outputs as a tuple, or ``None`` if they are to be found."""
        if self.outputs is None:
            return None
        return (self.outputs,) if isinstance(self.outputs, str) else tuple(self.outputs)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are_paths(outputs: object) -> bool:
    if isinstance(outputs, tuple | list):
        return len(outputs) > 0 and all(isinstance(path, str) for path in outputs)
    return isinstance(outputs, str)


def check_tasks(tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Return ``tasks`` as a dict in its own order.

    Raises:
        InputError: The mapping is empty, a key is not a string or a value is not a ``Task``.
    """
    if not isinstance(tasks, Mapping) or not tasks:
        raise InputError(
            "`tasks` must map at least one name to a `Task`, for example "
            "{'lane': Task(loss=lambda outputs, batch: ...)}. "
            f"Found {'an empty ' if isinstance(tasks, Mapping) else ''}{type(tasks).__name__}."
        )
    for name, task in tasks.items():
        if not isinstance(name, str) or not isinstance(task, Task):
            raise InputError(
                "`tasks` must map names to `Task` objects. "
                f"Found {short(name)}: {type(task).__name__}."
            )
    return dict(tasks)


def check_validation(data: Iterable[Any], when: str) -> Iterable[Any]:
    """Return validation data that can be measured on more than once.

    Args:
        data: The batches.
        when: Says in the error when they are gone through.

    Raises:
        InputError: It is an iterator, or is known to hold no batch.
    """
    if isinstance(data, Iterator):
        raise InputError(
            f"Validation data is gone through {when}. Found an iterator, which has one pass only: "
            "pass a list of batches or a `DataLoader`."
        )
    if length_hint(data, 1) == 0:  # 1 where the length is not known, as of streams
        raise no_validation_batch()
    return data


def no_validation_batch() -> InputError:
    """Return the error of validation data without a batch."""
    return InputError(
        "Metrics are to be measured, but the validation data holds no batch. A `DataLoader` with "
        "`drop_last=True` drops all samples where they are fewer than `batch_size`."
    )
