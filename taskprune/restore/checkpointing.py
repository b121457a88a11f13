"""Activation checkpointing inside of a model, while gradients are asked for by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils import checkpoint

from taskprune.restore.alone import alone


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
