"""Stages that allocate much and release little run without the cyclic garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Keep the cyclic garbage collector from running; give it back as it was, also on error.

    Every few hundred allocations it looks through objects that are nearly all still needed, and
    now and then through the whole heap of the process, torch's modules included. Memory that is
    in no cycle is freed as ever. Also a decorator.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
