"""Training figures for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from taskprune.distillation.history import StepRecord
from taskprune.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


class TensorBoardLog:
    """A callback that writes every step's record as scalars, on the main process.

    The names are ``loss``, ``learning_rate``, ``gradient_norm``, ``task/<name>``,
    ``feature/<tap>``, ``output/<name>``, ``weight/<name>``, and those of callbacks before it in the
    list, ``validation/<task>`` for example. Where a run goes on from a checkpoint, TensorBoard
    drops what was written after that. The files are up to date after each step.

    Example:
        >>> log = TensorBoardLog("runs/first")
        >>> DistillSettings(steps=1000, callbacks=(Validation(tasks, held_out, every=200), log))

    Args:
        directory: Folder of the event files.

    Raises:
        MissingDependencyError: TensorBoard is not installed.
    """

    def __init__(self, directory: str | Path) -> None:
        try:
            from torch.utils.tensorboard import writer  # noqa: F401 - fails now, not in step 1
        except ImportError as error:
            raise MissingDependencyError(
                "Logging for TensorBoard needs the package `tensorboard`, which cannot be imported "
                f'({error}). Install it with `pip install "taskprune[tensorboard]"`.'
            ) from error
        self.directory = Path(directory)
        self._writer: SummaryWriter | None = None
        self._step = 0

    def __call__(self, record: StepRecord, student: nn.Module) -> None:  # noqa: ARG002 - a callback
        """Write one record."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_rank() != 0:
            return
        writer = self._opened(record.step)
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record.step)
        writer.flush()
        self._step = record.step

    def close(self) -> None:
        """Close the event file; a later record opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _opened(self, step: int) -> SummaryWriter:
        if step <= self._step:  # another run, or the same one from its last checkpoint
            self.close()
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            try:
                self._writer = SummaryWriter(str(self.directory), purge_step=step)
            except OSError as error:
                raise InputError(
                    f"Expected a folder to write to at `{self.directory}`. Opening an event file "
                    f"failed: {error}. Choose another folder."
                ) from error
        return self._writer


def scalars(record: StepRecord) -> dict[str, float]:
    """Return the figures of a record by the name they have in TensorBoard."""
    found = {
        "loss": record.loss,
        "learning_rate": record.learning_rate,
        "gradient_norm": record.gradient_norm,
    }
    groups = {
        "task": record.tasks,
        "feature": record.features,
        "output": record.outputs,
        "weight": record.weights,
    }
    for kind, group in groups.items():
        found |= {f"{kind}/{name}": value for name, value in group.items()}
    return found | dict(record.measured)
