"""What happened in training: one record per optimizer step, kept as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

from torch import nn

from taskprune.distillation.writing import replacing, writing
from taskprune.errors import CheckpointError


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
    """Appends step records to a JSONL file, and reads them back when a run goes on.

    Args:
        path: The file; its folder must exist. ``None``: kept in memory only.
        step: Go on after this step: later records, written before a kill but after the last
            checkpoint, are cut off.

    Raises:
        CheckpointError: The part of the file up to ``step`` is damaged, or nothing can be written.
    """

    def __init__(self, path: Path | None, *, step: int = 0) -> None:
        self.path = path
        self.records: list[StepRecord] = []
        self._lines: list[str] = []
        if path is not None:
            self.records = _read(path, step) if step else []
            _rewrite(path, self.records)

    def append(self, record: StepRecord) -> None:
        """Add one record; it reaches the disk with the next :meth:`flush`."""
        self.records.append(record)
        if self.path is not None:
            self._lines.append(json.dumps(asdict(record)) + "\n")
            if len(self._lines) >= 20:
                self.flush()

    def flush(self) -> None:
        """Write what is waiting.

        Raises:
            CheckpointError: The disk is full or the file cannot be written.
        """
        if self.path is not None and self._lines:
            with writing(self.path), self.path.open("a", encoding="utf-8") as file:
                file.writelines(self._lines)
            self._lines = []


def _read(path: Path, step: int) -> list[StepRecord]:
    records: list[StepRecord] = []
    if not path.exists():
        return records
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if records and records[-1].step >= step:
            break
        try:
            record = StepRecord(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"Line {number} of `{path}` is not a training record ({error}), though the "
                f"checkpoint beside it is at step {step}. Delete the file to go on without the "
                "history."
            ) from error
        if record.step <= step:
            records.append(record)
    return records


def _rewrite(path: Path, records: list[StepRecord]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(record)) + "\n" for record in records)
