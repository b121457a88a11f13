"""State of the whole process: borrowed for a while, and given back also after an error."""

from __future__ import annotations

import gc
import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import checkpoint

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


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the state of Python's, NumPy's and torch's generators on exit, also on error.

    They are those of the process: other threads that borrow them wait, see :func:`alone`.
    """
    with alone():
        python_state = random.getstate()
        numpy_state = np.random.get_state()  # noqa: NPY002 - the legacy state is what users have
        torch_state = torch.get_rng_state()
        cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            torch.set_rng_state(torch_state)
            if cuda_states:
                torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Keep the fused inference path of attention away: it is one opaque operator."""
    with alone():
        enabled = torch.backends.mha.get_fastpath_enabled()
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def readable_kernels() -> Iterator[None]:
    """Keep oneDNN away, whose recurrent layers are one opaque operator, for some dtypes only."""
    with alone():
        enabled = torch._C._get_mkldnn_enabled()
        try:
            # `torch.backends.mkldnn.flags` sets more than this, and warns on most machines.
            torch._C._set_mkldnn_enabled(False)
            yield
        finally:
            torch._C._set_mkldnn_enabled(enabled)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Treat denormal numbers as zero inside; restore the setting on exit, also on error.

    Long training leaves denormal numbers in norms and averages, which slow a CPU down tenfold.
    The setting belongs to the calling thread; threads started inside inherit it.
    """
    # There is no getter: a product that is denormal tells the present setting.
    before = bool((torch.tensor([1e-39], dtype=torch.float32, device="cpu") * 1.0 == 0).item())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


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


@contextmanager
def without_cached_casts() -> Iterator[None]:
    """Cast weights anew wherever a surrounding autocast casts them, and leave no cast behind.

    Autocast keeps the casts of weights until its outermost block ends. A trace would leave tensors
    without content there, which the user's next forward would find; and weights that are exchanged
    for a moment would seem to be what they were before. Casts themselves go on as they are.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        # A model may have switched the cache on in a block of its own.
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(enabled)


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Switch a surrounding autocast off for the devices of a model; blocks inside work as ever."""
    tensors = (*model.parameters(), *model.buffers())
    kinds = {"cpu", *(tensor.device.type for tensor in tensors)}
    enabled = [
        kind
        for kind in kinds
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    ]
    for kind in enabled:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in enabled:
            torch.set_autocast_enabled(kind, True)


@contextmanager
def without_reentrance() -> Iterator[None]:
    """Run re-entrant checkpoints as those that are not, which save the same memory.

    A re-entrant one calls ``backward`` inside of ``backward``, so that gradients end up in
    ``.grad`` alone; torch refuses to return them.
    """

    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )

    kind: Any = checkpoint.CheckpointFunction
    with alone():
        own = vars(kind).get("apply")
        try:
            kind.apply = staticmethod(apply)
            yield
        finally:
            if own is None:
                del kind.apply
            else:
                kind.apply = own
