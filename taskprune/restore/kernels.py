"""Switches of the process that choose between kernels, set for a while and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from taskprune.restore.alone import alone


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
