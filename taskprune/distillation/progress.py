"""A progress bar for whoever looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def training_progress(
    console: Console | None, *, steps: int, done: int, visible: bool = True
) -> Iterator[Callable[[StepRecord], None]]:
    """Show steps, time and losses; silent where no console is given and stderr is no terminal.

    Yields:
        ``show(record)``, to be called after each step.
    """
    if console is None:
        console = Console(stderr=True)
        visible = visible and console.is_terminal
    if not visible:
        yield lambda _: None
        return
    columns = (
        TextColumn("Distilling"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=steps, completed=done, losses="")

        def show(record: StepRecord) -> None:
            progress.update(bar, completed=record.step, losses=_summary(record))

        yield show


def _summary(record: StepRecord) -> str:
    parts = [f"{name} {loss:.3g}" for name, loss in record.tasks.items()]
    if record.features:
        parts.append(f"features {sum(record.features.values()):.3g}")
    return "  ".join(parts)
