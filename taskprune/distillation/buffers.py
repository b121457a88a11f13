"""Many tensors at once: remember them, and make them equal in all processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def by_dtype(tensors: Iterable[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    """Return the tensors in groups that one kernel or one message can take."""
    groups: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.dtype].append(tensor)
    return dict(groups)


class BufferSlots:
    """Where a model holds its buffers.

    A model may give a buffer a new tensor in its forward pass (``self.mean = 0.9 * self.mean + x``)
    instead of changing the old one, so a tensor of the start says nothing later on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._slots = {
            f"{path}.{name}" if path else name: (module._buffers, name)
            for path, module in model.named_modules()
            for name in module._buffers
        }

    def named(self) -> dict[str, Tensor]:
        """Return the tensors that are there now, by name; shared ones under every name."""
        found = ((path, owner.get(name)) for path, (owner, name) in self._slots.items())
        return {path: tensor for path, tensor in found if tensor is not None}

    def tensors(self) -> list[Tensor]:
        """Return the tensors that are there now, shared ones once."""
        return list({id(tensor): tensor for tensor in self.named().values()}.values())

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors back where :meth:`named` found them, and ``None`` where it found none."""
        for path, (owner, name) in self._slots.items():
            if owner.get(name) is not tensors.get(path):
                owner[name] = tensors.get(path)


class Snapshot:
    """Remembers a model's buffers; one kernel per dtype instead of one per tensor."""

    def __init__(self, slots: BufferSlots) -> None:
        self._slots = slots
        self._named: dict[str, Tensor] = {}
        self._live: dict[torch.dtype, list[Tensor]] = {}
        self._copies: dict[torch.dtype, list[Tensor]] = {}

    @torch.no_grad()
    def take(self) -> None:
        """Remember the present tensors and their values."""
        named = self._slots.named()
        # The same tensors as before, which is the rule, need no new memory.
        if named.keys() == self._named.keys() and all(
            tensor is self._named[name] for name, tensor in named.items()
        ):
            for kind, live in self._live.items():
                torch._foreach_copy_(self._copies[kind], live)
            return
        self._named = named
        self._live = by_dtype(self._slots.tensors())
        self._copies = {kind: [t.clone() for t in live] for kind, live in self._live.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put the remembered tensors back, with the values they had."""
        self._slots.bind(self._named)
        for kind, live in self._live.items():
            torch._foreach_copy_(live, self._copies[kind])


@torch.no_grad()
def take_from_main(tensors: Iterable[Tensor]) -> None:
    """Give every process the main process's values, in place; one message per dtype."""
    from accelerate.utils import broadcast

    for group in by_dtype(tensors).values():
        flat = broadcast(torch.cat([tensor.detach().reshape(-1) for tensor in group]))
        parts = flat.split([tensor.numel() for tensor in group])
        values = [part.view(tensor.shape) for part, tensor in zip(parts, group, strict=True)]
        torch._foreach_copy_(group, values)
