"""Copies of a model's weights that are kept beside it: their running average, for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from taskprune.distillation.buffers import BufferSlots
from taskprune.distillation.shards import local


class KeptWeights:
    """A copy of a model's parameters and buffers as they are now.

    Values are copied both ways, never tensors exchanged: optimizer, shards and compiled code keep
    theirs. Of a sharded model, each process keeps its own shards; for that reason, and because a
    model may give a buffer a new tensor, this is no ``torch.optim.swa_utils.AveragedModel``, which
    copies modules.

    Attributes:
        tensors: What is kept, by name; tensors that have several names once.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters: dict[str, Tensor] = dict(model.named_parameters())
        self._buffers = BufferSlots(model)
        live = self._parameters | dict(model.named_buffers())
        self.tensors = {name: tensor.detach().clone() for name, tensor in live.items()}

    @torch.no_grad()
    def take(self) -> None:
        """Keep the model's present weights instead."""
        for kept, live in self._pairs():
            kept.copy_(live)

    @torch.no_grad()
    def give(self) -> None:
        """Give the model what is kept."""
        for kept, live in self._pairs():
            live.copy_(kept)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        present = self._parameters | self._buffers.named()
        return [(local(kept), local(present[n]).detach()) for n, kept in self.tensors.items()]


class WeightAverage(KeptWeights):
    """Exponential moving average of parameters and floating-point buffers.

    ``average += (1 - d) * (weight - average)`` with ``d = min(decay, (1 + n) / (10 + n))`` at the
    n-th update, so that the first weights do not linger.

    Args:
        model: The model to follow; its present weights are the first average.
        decay: Between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step number ``step`` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = self._pairs()
        averaged = [(kept, live) for kept, live in pairs if kept.is_floating_point()]
        kept, live = zip(*averaged, strict=True)
        torch._foreach_lerp_(kept, live, 1.0 - decay)
        for kept_count, count in pairs:
            if not kept_count.is_floating_point():
                kept_count.copy_(count)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Lend the model its averaged weights; the live ones come back, also after an error."""
        live = [tensor for _, tensor in self._pairs()]
        before = [tensor.clone() for tensor in live]
        self.give()
        try:
            yield
        finally:
            torch._foreach_copy_(live, before)
