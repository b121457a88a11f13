"""Show and record how a training run goes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from taskprune.driving.evaluation import metrics_table
from taskprune.files import JsonLines


class Watch:
    """Progress bar and tables for a person, JSON lines for a program.

    Args:
        log: File to which records are appended, one JSON object a line.
        console: Where bar and tables are shown; ``None``: nowhere.
        log_every: Steps that a record of the losses sums up.
    """

    def __init__(self, log: Path, *, console: Console | None, log_every: int) -> None:
        self._path = log
        self._console = console or Console(quiet=True)
        self._log_every = log_every
        self._progress = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bar = self._progress.add_task("", total=1.0, step=0, losses="")
        self._forget()

    @contextmanager
    def running(self, first_step: int) -> Iterator[None]:
        """Show the bar while the block runs; forget records of steps that are still to come.

        Raises:
            CheckpointError: The log is damaged, or cannot be written.
        """
        self._log = JsonLines(self._path, step=first_step)
        with self._progress:
            self._forget()
            yield

    def step(
        self,
        step: int,
        *,
        losses: Mapping[str, float],
        progress: float,
        values: Mapping[str, float],
    ) -> None:
        """Take in one step: loss of each task, finished part of the run, other numbers to log."""
        self._count += 1
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + loss
        shown = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        self._progress.update(self._bar, completed=progress, step=step, losses=shown)
        if step % self._log_every == 0:
            now = time.monotonic()
            self._write(
                {
                    "step": step,
                    "progress": round(progress, 4),
                    "losses": {n: round(s / self._count, 4) for n, s in self._sums.items()},
                    "seconds_per_step": round((now - self._since) / self._count, 4),
                    **{name: float(f"{value:.4g}") for name, value in values.items()},
                }
            )
            self._forget()

    def validated(self, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Take in validation results."""
        self._console.print(metrics_table(metrics, title=f"Validation after {step} steps"))
        rounded = {
            task: {n: None if math.isnan(v) else round(v, 4) for n, v in values.items()}
            for task, values in metrics.items()
        }
        self._write({"step": step, "validation": rounded})
        self._forget()

    def _forget(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0
        self._since = time.monotonic()

    def _write(self, record: Mapping[str, Any]) -> None:
        self._log.append(record)
        self._log.flush()
