"""What people see in a terminal: what is going on, tables, and what went wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from taskprune.errors import TaskPruneError

_log = logging.getLogger("taskprune")

EVERY, EVERY_IN_A_CELL = 30.0, 0.2
"""Seconds between two lines in the log, and between two states of the line below a cell."""


@contextmanager
def stages(title: str) -> Iterator[Callable[[str], None]]:
    """Show the current stage: beside a spinner on a terminal, else as :func:`lines`.

    Yields:
        ``stage(text)``: announce the next stage.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        with lines(title) as say:
            yield say
        return
    with console.status(f"{title} …") as status:
        yield lambda text: status.update(f"{title}: {text} …")


@contextmanager
def lines(title: str) -> Iterator[Callable[[str], None]]:
    """Say how far something is where there is no terminal.

    In a notebook that is a line below the cell, which changes in its place and ends with the time
    it took; elsewhere it is a line now and then in the log.

    Yields:
        ``say(text)``, to be called as often as there is something new.
    """
    if Console(stderr=True).is_jupyter:
        with _line_of_a_cell(title) as say:
            yield say
        return
    last = time.monotonic()

    def log(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            _log.info("%s: %s", title, text)

    yield log


@contextmanager
def _line_of_a_cell(title: str) -> Iterator[Callable[[str], None]]:
    from IPython import display  # there is none where there is no notebook

    shown = display.DisplayHandle()
    began, last = time.monotonic(), None

    def say(text: str) -> None:
        nonlocal last
        show = shown.display if last is None else shown.update
        if last is None or time.monotonic() - last >= EVERY_IN_A_CELL:
            last = time.monotonic()
            show({"text/plain": f"{title}: {text}"}, raw=True)

    how = "stopped"
    try:
        yield say
        how = "done"
    finally:
        if last is not None:
            text = f"{title}: {how} after {time.monotonic() - began:.1f} s"
            shown.update({"text/plain": text}, raw=True)


def text_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    words: Collection[str] | None = None,
    caption: str | None = None,
) -> Table:
    """Return a table that keeps words on the left and numbers on the right of their columns.

    Args:
        title: What stands above it.
        headings: One a column.
        rows: A cell a column each.
        words: Headings of the columns that hold words; the first one alone by default.
        caption: What stands below it.
    """
    on_the_left = headings[:1] if words is None else words
    table = Table(title=title, title_justify="left", caption=caption)
    for heading in headings:
        table.add_column(
            heading,
            justify="left" if heading in on_the_left else "right",
            overflow="fold",  # names are worth nothing cut short
        )
    for row in rows:
        table.add_row(*row)
    return table


def plain_text(content: RenderableType, *, width: int = 100) -> str:
    """Return what rich would print as plain text of at most `width` columns."""
    console = Console(width=width, color_system=None, highlight=False, emoji=False, markup=False)
    with console.capture() as capture:
        console.print(content)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip()


@contextmanager
def logged() -> Iterator[None]:
    """Write the library's log to a standard error that is no terminal, unless somebody does."""
    log = logging.getLogger("taskprune")
    if Console(stderr=True).is_terminal or log.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), log.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def plain_errors(*, debug: bool = False) -> Iterator[None]:
    """Turn the project's errors into one paragraph on standard error and exit code 2.

    Where that is no terminal, what the library logs goes there, its progress now and then included.

    All other exceptions pass through: they are bugs, and their traceback helps.

    Args:
        debug: Let all exceptions through.

    Raises:
        typer.Exit: With code 2, in place of any :class:`~taskprune.errors.TaskPruneError`.
    """
    try:
        with logged():
            yield
    except TaskPruneError as error:
        if debug:
            raise
        from typer import Exit  # the library is imported without its command line

        # As text, not markup: shapes in square brackets are no style names.
        line = Text.assemble(("Error: ", "bold red"), str(error))
        Console(stderr=True, soft_wrap=True).print(line)
        raise Exit(2) from error
