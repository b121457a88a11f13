"""What happened in training: one record per optimizer step, kept as JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

from torch import nn

from taskprune.errors import CheckpointError, InputError
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
