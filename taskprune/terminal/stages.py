"""Tell a person what is going on, on a terminal or now and then in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

_log = logging.getLogger("taskprune")

EVERY = 30.0
"""Seconds between two lines in the log."""


@contextmanager
def stages(title: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner with the current stage on a terminal's standard error.

    Yields:
        ``stage(text)``: announce the next stage. Where there is no terminal, a line now and then
        goes to the log.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        last = time.monotonic()

        def log(text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= EVERY:
                last = time.monotonic()
                _log.info("%s: %s", title, text)

        yield log
        return
    with console.status(f"{title} …") as status:
        yield lambda text: status.update(f"{title}: {text} …")
