"""One writer at a time, kept by a lock that ends with the process that holds it."""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from taskprune.errors import InputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_log = logging.getLogger("taskprune")

_held: set[str] = set()
"""Lock files of this process: the system's locks do not hold between its threads."""
_guard = threading.Lock()

_REFUSED = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


@contextmanager
def locked(lock: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock for the length of the block; its file is gone afterwards.

    Where the file system knows no locks, a message says so and the block runs.

    Args:
        lock: The file that stands for it, in an existing folder.
        wait_s: Wait for another holder for so long.

    Raises:
        BlockingIOError: Another process or thread holds it.
        OSError: The file cannot be made.
    """
    # Not `flock`, whose locks live on in forked children, such as those that load data.
    key = os.path.realpath(lock)
    until = time.monotonic() + wait_s
    while (descriptor := _taken(lock, key)) is None:
        if time.monotonic() >= until:
            raise BlockingIOError(errno.EAGAIN, "another process or thread uses it", str(lock))
        time.sleep(0.02)
    holder = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == holder:
            with _guard:
                # While it is still locked: who opened it meanwhile sees that it is another file.
                with suppress(OSError):
                    lock.unlink()
                os.close(descriptor)
                _held.discard(key)


@contextmanager
def only_user_of(folder: Path, *, option: str) -> Iterator[None]:
    """Keep every other run out of a folder.

    Args:
        folder: Exists and can be written to, see :func:`~taskprune.files.make_folder`.
        option: What the user sets it with, for the message.

    Raises:
        InputError: Another process or thread is writing there.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock"))
        except OSError as error:
            raise InputError(
                f"Expected a folder that no other run writes to. `{folder}` cannot be had alone: "
                f"{error}. Wait until that run is through, end it, or choose another folder with "
                f"{option}."
            ) from error
        yield


def _taken(lock: Path, key: str) -> int | None:
    """Return the open file of the lock, or ``None`` where another has it."""
    with _guard:
        if key in _held:
            return None
        while True:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _is_locked(descriptor, lock):
                    os.close(descriptor)
                    return None
                # The holder before removed the file: a lock on that keeps nobody out.
                if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                    _held.add(key)
                    return descriptor
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def _is_locked(descriptor: int, lock: Path) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        if error.errno not in _UNKNOWN:
            raise
        _log.warning("Nothing keeps other runs out of %s: %s", lock.parent, error)
    return True
