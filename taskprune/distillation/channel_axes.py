"""On which axis a feature has its channels, by the kind of module that makes such features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from taskprune.calling.wrappers import uncompiled

_CHANNELS_FIRST = (_ConvNd, _NormBase, nn.GroupNorm)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
"""Modules whose results have their channels on the last axis, whatever the number of axes."""


class ChannelAxes:
    """Collects the shapes that modules with known axes put out; made by :func:`watched_axes`.

    What follows such a module without a shape of its own (activations, sums, containers) has its
    channels where the module has them.
    """

    def __init__(self) -> None:
        self._first: set[torch.Size] = set()
        self._last: set[torch.Size] = set()

    def see(self, module: nn.Module, output: Any) -> None:
        """Take note of what a module put out."""
        if isinstance(output, Tensor):
            if isinstance(module, _CHANNELS_FIRST):
                self._first.add(output.shape)
            elif isinstance(module, _CHANNELS_LAST):
                self._last.add(output.shape)

    def knows(self, feature: Tensor) -> bool:
        """Whether a module with known axes puts out such a shape."""
        return feature.shape in self._first or feature.shape in self._last

    def of(self, feature: Tensor) -> int | None:
        """Return the axis, or ``None`` if it is the usual one or both kinds have that shape."""
        is_first, is_last = feature.shape in self._first, feature.shape in self._last
        if is_first == is_last or feature.dim() < 3:
            return None
        if feature.dim() == 3:
            return 1 if is_first else None
        return feature.dim() - 1 if is_last else None


@contextmanager
def watched_axes(model: nn.Module) -> Iterator[ChannelAxes]:
    """Watch the modules of a model for the length of the block, compiled ones as written."""
    axes = ChannelAxes()

    def see(module: nn.Module, _args: Any, output: Any) -> None:
        axes.see(module, output)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, (*_CHANNELS_FIRST, *_CHANNELS_LAST)):
                stack.callback(module.register_forward_hook(see).remove)
        stack.enter_context(uncompiled(model))
        yield axes
