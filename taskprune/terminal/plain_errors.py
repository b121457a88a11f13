"""What the project's command lines share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from taskprune.errors import TaskPruneError


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
