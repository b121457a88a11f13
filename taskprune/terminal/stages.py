"""Tell a person what is going on, and stay silent where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def stages(title: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner with the current stage on a terminal's standard error.

    Yields:
        ``stage(text)``: announce the next stage. Does nothing where there is no terminal.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status(f"{title} …") as status:
        yield lambda text: status.update(f"{title}: {text} …")
