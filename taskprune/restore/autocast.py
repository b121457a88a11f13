"""Keep what a surrounding ``torch.autocast`` remembers apart from what runs inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
