"""What happened in training: one record per optimizer step with what callbacks measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from taskprune.errors import CheckpointError, InputError, short
from taskprune.files import JsonLines, as_record


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: Steps done, from 1.
        epoch: Pass through the data, from 0.
        learning_rate: Used in this step.
        loss: What was minimised: weighted task and feature losses plus output losses.
        tasks: Unweighted loss per task; tasks without labels in the step's batches left out.
        features: Unweighted feature loss per tap.
        outputs: Loss per output loss.
        gradient_norm: Before clipping.
        measured: What callbacks returned after this step.
    """

    step: int
    epoch: int
    learning_rate: float
    loss: float
    tasks: Mapping[str, float]
    features: Mapping[str, float]
    outputs: Mapping[str, float]
    gradient_norm: float
    measured: Mapping[str, float] = field(default_factory=dict)


Callback: TypeAlias = Callable[[StepRecord, nn.Module], Mapping[str, float] | None]
"""``(record, student) -> figures to log or None``, called after every optimizer step.

A figure may be a tensor or an array that holds one number; records keep it as a float.
"""


class HistoryLog:
    """Keeps step records, and in a file the lines that a run finds again when it goes on.

    Args:
        path: The file, see :class:`~taskprune.files.JsonLines`. ``None``: kept in memory only.
        step: Go on after this step.
        digest: Of the records up to it, as the run's checkpoint says.

    Raises:
        CheckpointError: The part of the file up to ``step`` is damaged, or nothing can be written.
    """

    def __init__(self, path: Path | None, *, step: int = 0, digest: str | None = None) -> None:
        self._lines = None if path is None else JsonLines(path, step=step, digest=digest)
        found = self._lines.records if self._lines else []
        try:
            self.records = [as_record(StepRecord, record, "a record") for record in found]
        except InputError as error:
            raise CheckpointError(f"`{path}` holds no records of training: {error}") from error

    @property
    def digest(self) -> str | None:
        """Checksum of the records in the file."""
        return self._lines.digest if self._lines else None

    def append(self, record: StepRecord) -> None:
        """Add one record; it reaches the disk with the next :meth:`flush`."""
        self.records.append(record)
        if self._lines:
            self._lines.append(asdict(record))

    def flush(self) -> None:
        """Write what is waiting.

        Raises:
            CheckpointError: The disk is full or the file cannot be written.
        """
        if self._lines:
            self._lines.flush()


def as_figure(value: Any, what: str) -> float:
    """Return a number, or a tensor or array that holds one, as a float.

    The history is JSON, which knows no tensors; torchmetrics returns nothing else.

    Args:
        value: What was measured.
        what: Names it in the error.

    Raises:
        InputError: It is something else.
    """
    try:
        # `float` would also read strings.
        if not isinstance(value, str | bytes):
            return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        pass
    shape = f" of shape {list(value.shape)}" if hasattr(value, "shape") else f" {short(value)}"
    raise InputError(
        f"{what} must be a number, or a tensor or array that holds one. Found "
        f"{type(value).__name__}{shape}."
    )


def called(callback: Callback, record: StepRecord, student: nn.Module) -> dict[str, float]:
    """Call a callback after a step and return the figures it measured.

    Raises:
        InputError: It returned neither a mapping from names to numbers nor ``None``.
    """
    found: Any = callback(record, student)
    if found is None:
        return {}
    name = getattr(callback, "__qualname__", type(callback).__qualname__)
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise InputError(
            f"The callback `{name}` must return a dict from names to numbers, or None. Found "
            f"{short(found)}, a {type(found).__name__}, after step {record.step}. Return for "
            "example {'lane': 0.5}."
        )
    return {
        key: as_figure(value, f"The figure `{key}` of the callback `{name}`")
        for key, value in found.items()
    }
