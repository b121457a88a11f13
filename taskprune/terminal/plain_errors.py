"""What the project's command lines share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from taskprune.errors import TaskPruneError


@contextmanager
def plain_errors(*, debug: bool = False) -> Iterator[None]:
    """Turn the project's errors into one paragraph on standard error and exit code 2.

    All other exceptions pass through: they are bugs, and their traceback helps.

    Args:
        debug: Let all exceptions through.

    Raises:
        typer.Exit: With code 2, in place of any :class:`~taskprune.errors.TaskPruneError`.
    """
    try:
        yield
    except TaskPruneError as error:
        if debug:
            raise
        from typer import Exit  # the library is imported without its command line

        # As text, not markup: shapes in square brackets are no style names.
        line = Text.assemble(("Error: ", "bold red"), str(error))
        Console(stderr=True, soft_wrap=True).print(line)
        raise Exit(2) from error
