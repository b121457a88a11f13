"""One thread at a time, where state of the whole process is borrowed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger("taskprune")
_LOCK = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Keep other threads out until this one is done; it may enter again itself.

    Random generators, the default dtype, switches of kernels and hooks on all modules belong to the
    process: what one thread sets for a while another would run with, and give back as its own.
    Only threads that come here wait; to others the changes are visible.
    """
    if _LOCK.acquire(blocking=False):
        _LOCK.release()
    else:
        _log.info("Waiting for another thread that traces, scores, verifies or trains.")
    with _LOCK:
        yield
