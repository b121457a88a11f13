"""A progress bar for whoever looks."""

from __future__ import annotations

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
from taskprune.terminal import lines

MOST_OF_FIGURES = 60
"""Characters of measured figures in the line; the history has all."""


@contextmanager
def training_progress(
    console: Console | None, *, steps: int, done: int, visible: bool = True
) -> Iterator[Callable[[StepRecord], None]]:
    """Show steps, time, losses and the last figures that callbacks measured.

    Where no console is given and stderr is no terminal, as :func:`~taskprune.terminal.lines` does.

    Yields:
        ``show(record)``, to be called after each step.
    """
    if not visible:
        yield lambda _: None
        return
    latest: dict[str, float] = {}
    if console is None and not (console := Console(stderr=True)).is_terminal:
        with lines("Distilling") as say:

            def tell(record: StepRecord) -> None:
                latest.update(record.measured)
                say(f"step {record.step} of {steps}, {_summary(record, latest)}")

            yield tell
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
