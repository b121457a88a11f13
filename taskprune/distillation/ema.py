"""A running average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from taskprune.distillation.buffers import BufferSlots
from taskprune.distillation.shards import local


class WeightAverage:
    """Exponential moving average of parameters and floating-point buffers.

    ``average += (1 - d) * (weight - average)`` with ``d = min(decay, (1 + n) / (10 + n))`` at the
    n-th update, so that the first weights do not linger. Of a sharded model, each process averages
    its own shards.

    Args:
        model: The model to follow; its present weights are the first average.
        decay: Between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        live = floating_tensors(model)
        self._parameters: dict[str, Tensor] = dict(model.named_parameters())
        self._buffers = BufferSlots(model)
        self.average = {name: t.detach().clone() for name, t in live.items()}

    def _live(self) -> list[Tensor]:
        """Return what is averaged, in that order; a model may have given a buffer a new tensor."""
        present = self._parameters | self._buffers.named()
        return [present[name] for name in self.average]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step number ``step`` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local(tensor) for tensor in self.average.values()]
        torch._foreach_lerp_(averages, [local(t) for t in self._live()], 1.0 - decay)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the average from saved tensors."""
        for name, tensor in self.average.items():
            tensor.copy_(tensors[name])

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Lend the model its averaged weights; the live ones come back, also after an error.

        Values are copied, not tensors exchanged: optimizer, shards and compiled code keep theirs.
        """
        live = [local(tensor).detach() for tensor in self._live()]
        kept = [tensor.clone() for tensor in live]
        self.copy_to_model()
        try:
            yield
        finally:
            torch._foreach_copy_(live, kept)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Give the model its averaged weights."""
        for tensor, average in zip(self._live(), self.average.values(), strict=True):
            tensor.copy_(average)


def floating_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and floating-point buffers by name, shared ones once."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors.update({name: b for name, b in model.named_buffers() if b.is_floating_point()})
    return tensors
