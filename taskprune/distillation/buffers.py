"""Many tensors at once: remember them, and make them equal in all processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def by_dtype(tensors: Iterable[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    """Return the tensors in groups that one kernel or one message can take."""
    groups: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.dtype].append(tensor)
    return dict(groups)


class Snapshot:
    """Remembers tensors; one kernel per dtype instead of one per tensor."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._live = by_dtype(tensors)
        self._copies = {kind: [t.clone() for t in live] for kind, live in self._live.items()}

    @torch.no_grad()
    def take(self) -> None:
        """Remember the present values."""
        for kind, live in self._live.items():
            torch._foreach_copy_(self._copies[kind], live)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the remembered values back."""
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
