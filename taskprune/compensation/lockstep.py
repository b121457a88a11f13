"""Run forwards that stop where they are told to, and go on later.

Each is a thread of its own, of which never more than one runs: they are coroutines for code that
knows nothing of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

NAME = "taskprune-lane"
"""Of the threads."""


class _Abandoned(BaseException):
    """Unwinds a forward that nobody will let go on."""


class Stoppable:
    """A call that can stop inside.

    Args:
        call: Runs in a thread of its own, without gradients, with the default device and the
            autocast of the thread that made this.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self.stopped_at: Any = None
        self.is_finished = False
        self._call = call
        self._error: BaseException | None = None
        # Queues, as an interrupt in a semaphore may leave it so that nobody is ever woken.
        self._go: SimpleQueue[None] = SimpleQueue()
        self._paused: SimpleQueue[None] = SimpleQueue()
        self._is_abandoned = False
        self._contexts = _contexts_here()
        self._thread: threading.Thread | None = None

    def advance(self) -> None:
        """Run up to the next stop, or to the end.

        Raises:
            Exception: What the call raised.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
            self._thread.start()
        self.stopped_at = None
        self._go.put(None)
        self._paused.get()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def stop(self, where: Any) -> None:
        """Stop here, called from inside, until :meth:`advance` is called again."""
        self.stopped_at = where
        self._paused.put(None)
        self._go.get()
        if self._is_abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """Let the call unwind, wherever it stands; :meth:`join` waits for that."""
        self._is_abandoned = True
        self._go.put(None)

    def join(self) -> None:
        """Wait until an abandoned call has unwound."""
        if self._thread is not None and self._thread.ident is not None:
            with suppress(RuntimeError):  # an interrupt kept it from starting
                self._thread.join()

    def _run(self) -> None:
        self._go.get()
        try:
            if self._is_abandoned:  # before it began: an interrupt came in between
                raise _Abandoned
            with ExitStack() as stack:
                for enter in self._contexts:
                    stack.enter_context(enter())
                self._call()
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._error = error
        finally:
            self.is_finished = True
            self._paused.put(None)


def _contexts_here() -> list[Callable[[], Any]]:
    """Return what a new thread has to enter to be like this one."""
    contexts: list[Callable[[], Any]] = [torch.no_grad]
    for kind in ("cpu", "cuda"):
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            # The cache would keep casts of weights that are about to change.
            contexts.append(partial(torch.autocast, kind, dtype, cache_enabled=False))
    default = torch.get_default_device()
    if default.type != "cpu":
        contexts.append(partial(torch.device, default))
    if torch.cuda.is_available():
        stream = torch.cuda.current_stream()
        contexts.append(partial(torch.cuda.stream, stream))
    return contexts
