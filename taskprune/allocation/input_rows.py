"""Rows of what readers read, kept only where some channel may say nothing of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from taskprune.allocation.dependence import maybe_dependent
from taskprune.compensation.reading_calls import Read
from taskprune.importance.distributed import gathered

ROWS = 1024
"""Positions of one call to look at, evenly spaced, beside those where a channel is at its ends."""

WIDEST = 2048
"""Inputs of a reader up to which it is looked at: products of all of them are taken."""


class InputRows:
    """Looks at what readers read while something else runs the model.

    Rows that were seen cannot make channels dependent again, so a reader whose first rows show that
    all channels have something of their own is not looked at any more, and its rows are let go:
    the memory is that of one reader, and of those where something may be free.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}
        self._independent: set[str] = set()
        self._looked: dict[str, float] = {}

    def take(self, read: Read, weight: Tensor) -> None:
        """Take in what one call reads through a weight."""
        if read.name in self._independent:
            return
        x = read.geometry.positions(read.x.detach())
        if x.shape[-1] > WIDEST or not x.is_floating_point():
            self._let_go(read.name)
            return
        narrow = torch.promote_types(x.dtype, torch.float32)
        parts = self._parts.setdefault(read.name, [])
        rows = _chosen(x).to("cpu", narrow)
        is_other = bool(parts) and parts[0].shape[::2] != rows.shape[::2]  # along another dim
        if is_other or not bool(rows.isfinite().all()):
            self._let_go(read.name)
            return
        parts.append(rows)
        n_rows = sum(part.shape[1] for part in parts)
        if n_rows < self._looked.get(read.name, 0.75 * x.shape[-1]) * 2:
            return
        self._looked[read.name] = n_rows
        seen = torch.cat(parts, 1).double()
        blocks = read.geometry.blocks(weight.detach()).to("cpu", torch.float64)
        if not any(maybe_dependent(*own) for own in zip(seen, blocks, strict=True)):
            self._let_go(read.name)

    def gathered(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the rows of all processes: those to fit to, and those to try it on.

        The latter are the last quarter of each call, its last images. Shapes ``[G, n, C]``.
        """
        everyone = gathered((self._parts, self._independent))
        independent = {name for _, own in everyone for name in own}
        names = dict.fromkeys(name for parts, _ in everyone for name in parts)
        found = {}
        for name in (name for name in names if name not in independent):
            parts = [part for own, _ in everyone for part in own.get(name, ())]
            rows, held, seen = torch.cat(parts, 1), [], 0
            for part in parts:
                number = torch.arange(part.shape[1], device="cpu")
                few = len(number) < 4
                held.append((number + seen) % 4 == 3 if few else number >= len(number) * 3 // 4)
                seen += len(number)
            is_held = torch.cat(held)
            found[name] = rows[:, ~is_held], rows[:, is_held]
        return found

    def _let_go(self, name: str) -> None:
        self._independent.add(name)
        self._parts.pop(name, None)


def _chosen(x: Tensor) -> Tensor:
    """Return evenly spaced positions, and those where a channel is lowest or highest.

    A channel that is silent but for one spot is not dead. Shapes ``[G, B, L, C] -> [G, n, C]``.
    """
    n_positions = x.shape[1] * x.shape[2]
    if n_positions > ROWS:
        rows = torch.linspace(0, n_positions - 1, ROWS, device="cpu").long().to(x.device)
        lows, highs = x.min(2), x.max(2)  # of each image, which takes no copy
        for values, places in ((lows.values, lows.indices), (-highs.values, highs.indices)):
            image = values.argmin(1, keepdim=True)
            ends = image * x.shape[2] + places.gather(1, image)
            rows = torch.cat([rows, ends.flatten()])
        rows = torch.unique(rows)
    else:
        rows = torch.arange(n_positions, device=x.device)
    return x[:, rows // x.shape[2], rows % x.shape[2]]
