"""A progress bar for whoever looks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from textwrap import shorten

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from taskprune.distillation.history import StepRecord

_log = logging.getLogger("taskprune")

LOG_EVERY = 30.0
"""Seconds between two lines in the log."""

MOST_OF_FIGURES = 60
"""Characters of measured figures in the line; the history has all."""


@contextmanager
def training_progress(
    console: Console | None, *, steps: int, done: int, visible: bool = True
) -> Iterator[Callable[[StepRecord], None]]:
    """Show steps, time, losses and the last figures that callbacks measured.

    Where no console is given and stderr is no terminal, a line now and then goes to the log.

    Yields:
        ``show(record)``, to be called after each step.
    """
    to_log = visible and console is None
    if console is None:
        console = Console(stderr=True)
        visible = visible and console.is_terminal
    latest: dict[str, float] = {}
    if not visible:
        last = time.monotonic()

        def tell(record: StepRecord) -> None:
            nonlocal last
            latest.update(record.measured)
            if time.monotonic() - last >= LOG_EVERY:
                last = time.monotonic()
                said = _summary(record, latest)
                _log.info("Distilling: step %d of %d, %s", record.step, steps, said)

        yield tell if to_log else lambda _: None
        return
    columns = (
        TextColumn("Distilling"),
        BarColumn(bar_width=20),  # the rest of the line is for losses and figures
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),  # names may hold brackets
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=steps, completed=done, figures="")

        def show(record: StepRecord) -> None:
            latest.update(record.measured)
            progress.update(bar, completed=record.step, figures=_summary(record, latest))

        yield show


def _summary(record: StepRecord, measured: Mapping[str, float]) -> str:
    parts = [f"{name} {loss:.3g}" for name, loss in record.tasks.items()]
    if record.features:
        parts.append(f"features {sum(record.features.values()):.3g}")
    losses = "  ".join(parts)
    if not measured:
        return losses
    figures = "  ".join(f"{name} {value:.3g}" for name, value in measured.items())
    return f"{losses} | {shorten(figures, MOST_OF_FIGURES, placeholder=' …')}"
