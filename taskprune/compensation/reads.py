r"""How an operator reads channels: its input as rows, its weight as a matrix of blocks.

Every operator that is linear in its input channels can be written as

.. math:: y_{g,n,o} = b_{g,o} + \sum_{c,k} W_{g,o,c,k} \, x_{g,n,c,k}

with blocks *g* (groups of a convolution, experts), rows *n* (positions, tokens), outputs *o*, input
channels *c* and taps *k* (of a kernel). All else in this package is written against that form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor


class Geometry(Protocol):
    """One operator call's way to read.

    Attributes:
        dim: The dim of the weight that reads channels.
        out_dim: The dim of the weight that makes the operator's outputs.
        by_output: Whether a row is a position of the output; else it is one of the input, where
            outputs overlap and no row has outputs of its own.
    """

    @property
    def dim(self) -> int: ...

    @property
    def out_dim(self) -> int: ...

    @property
    def by_output(self) -> bool: ...

    def blocks(self, weight: Tensor) -> Tensor:
        """Return a weight as ``[blocks, outputs, channels, taps]``."""

    def weight(self, blocks: Tensor) -> Tensor:
        """Undo :meth:`blocks`."""

    def block_of(self, entries: Tensor) -> Tensor:
        """Return a vector along :attr:`dim` of the weight as ``[blocks, channels]``."""

    def loudness(self, gradient: Tensor) -> Tensor:
        """Return the squared norm of each row of a gradient. Shape ``[blocks, rows]``."""

    def columns(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return rows of the input. Shape ``[blocks, rows, channels, taps]``."""

    def positions(self, x: Tensor) -> Tensor:
        """Return the whole input, no taps apart. Shape ``[blocks, batch, space, channels]``."""

    def targets(self, y: Tensor, rows: Tensor) -> Tensor:
        """Return rows of the output. Shape ``[blocks, rows, outputs]``."""


def _squares(rows: Tensor) -> Tensor:
    """Sum squares over the last dim in at least float32."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).square().sum(-1)


@dataclass(frozen=True)
class ProductGeometry:
    """A product of rows with a matrix: ``linear``, ``matmul``, ``addmm``, recurrent inputs.

    Attributes:
        dim: 1 for a weight ``[outputs, channels]``, 0 for ``[channels, outputs]``.
        by_output: False where the product is not what the operator returns.
    """

    dim: int = 1
    by_output: bool = True

    @property
    def out_dim(self) -> int:
        return 1 - self.dim

    def blocks(self, weight: Tensor) -> Tensor:
        return (weight if self.dim == 1 else weight.T)[None, :, :, None]

    def weight(self, blocks: Tensor) -> Tensor:
        matrix = blocks[0, :, :, 0]
        return matrix if self.dim == 1 else matrix.T

    def block_of(self, entries: Tensor) -> Tensor:
        return entries[None]

    def loudness(self, gradient: Tensor) -> Tensor:
        return _squares(gradient.reshape(1, -1, gradient.shape[-1]))

    def columns(self, x: Tensor, rows: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])[rows][..., None]

    def positions(self, x: Tensor) -> Tensor:
        return x.reshape(1, 1, -1, x.shape[-1])

    def targets(self, y: Tensor, rows: Tensor) -> Tensor:
        return y.reshape(-1, y.shape[-1])[rows]


@dataclass(frozen=True)
class StackGeometry:
    """A product of each matrix of a stack with rows of its own: ``bmm``, experts.

    The weight is ``[blocks, channels, outputs]`` with the channels in ``dim``, or the other way.
    """

    dim: int = 1
    by_output: bool = True

    @property
    def out_dim(self) -> int:
        return 3 - self.dim

    def blocks(self, weight: Tensor) -> Tensor:
        return (weight if self.dim == 2 else weight.mT)[..., None]

    def weight(self, blocks: Tensor) -> Tensor:
        return blocks[..., 0] if self.dim == 2 else blocks[..., 0].mT

    def block_of(self, entries: Tensor) -> Tensor:
        return entries[None]  # the same in all blocks; broadcasts

    def loudness(self, gradient: Tensor) -> Tensor:
        return _squares(self._rows(gradient))

    def columns(self, x: Tensor, rows: Tensor) -> Tensor:
        return self._taken(x, rows)[..., None]

    def positions(self, x: Tensor) -> Tensor:
        return self._rows(x)[:, None]

    def targets(self, y: Tensor, rows: Tensor) -> Tensor:
        return self._taken(y, rows)

    def _rows(self, x: Tensor) -> Tensor:
        """``[..., blocks, n, width] -> [blocks, rows, width]``."""
        return x.movedim(-3, 0).reshape(x.shape[-3], -1, x.shape[-1])

    def _taken(self, x: Tensor, rows: Tensor) -> Tensor:
        index = rows[..., None].expand(-1, -1, x.shape[-1])
        return self._rows(x).gather(1, index)


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution of any rank; a row is a position of the output, a tap one of the kernel.

    Attributes:
        groups: Number of groups.
        kernel, stride, padding, dilation: One number per dim of space; padding on both sides.
    """

    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    dim: int = 1
    out_dim: int = 0
    by_output: bool = True

    def blocks(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, -1, weight.shape[1], prod(self.kernel))

    def weight(self, blocks: Tensor) -> Tensor:
        return blocks.reshape(-1, blocks.shape[2], *self.kernel)

    def block_of(self, entries: Tensor) -> Tensor:
        return entries[None]  # the same in all groups; broadcasts

    def loudness(self, gradient: Tensor) -> Tensor:
        batched = self._batched(gradient)
        split = _grouped(batched, self.groups)  # [B, G, O, L]
        return _squares(split.permute(1, 0, 3, 2)).flatten(1)

    def columns(self, x: Tensor, rows: Tensor) -> Tensor:
        x = self._batched(x)
        space = x.shape[2:]
        sizes = self._output_sizes(space)
        image, *places = _unravelled(rows, sizes)
        flat = torch.zeros_like(rows)[..., None]
        inside = torch.ones_like(flat, dtype=torch.bool)
        taps = torch.cartesian_prod(*(torch.arange(n, device=x.device) for n in self.kernel))
        taps = taps.reshape(-1, len(self.kernel))
        for d, size in enumerate(space):
            at = places[d][..., None] * self.stride[d] - self.padding[d][0]
            at = at + taps[:, d] * self.dilation[d]
            inside = inside & (at >= 0) & (at < size)
            flat = flat * size + at.clamp(0, size - 1)
        blocks = torch.arange(self.groups, device=x.device)[:, None, None]
        split = _grouped(x, self.groups)
        found: Tensor = split[image[..., None], blocks, :, flat]  # [G, n, K, C]
        return (found * inside[..., None]).transpose(2, 3)

    def positions(self, x: Tensor) -> Tensor:
        return _grouped(self._batched(x), self.groups).permute(1, 0, 3, 2)

    def targets(self, y: Tensor, rows: Tensor) -> Tensor:
        y = self._batched(y)
        split = _grouped(y, self.groups)
        length = split.shape[3]
        blocks = torch.arange(self.groups, device=y.device)[:, None]
        found: Tensor = split[rows // length, blocks, :, rows % length]
        return found

    def _batched(self, x: Tensor) -> Tensor:
        return x if x.ndim == len(self.kernel) + 2 else x[None]

    def _output_sizes(self, space: Sequence[int]) -> list[int]:
        return [
            (size + sum(self.padding[d]) - self.dilation[d] * (self.kernel[d] - 1) - 1)
            // self.stride[d]
            + 1
            for d, size in enumerate(space)
        ]


@dataclass(frozen=True)
class TransposedGeometry:
    """A transposed convolution: a row is a position of the input, of which each tap makes outputs.

    In the form of the module's docstring the outputs are those of all taps side by side.
    """

    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dim: int = 0
    out_dim: int = 1
    by_output: bool = False

    def blocks(self, weight: Tensor) -> Tensor:
        # [I, O / g, *k] -> [g, O / g * k, I / g, 1]
        split = weight.reshape(self.groups, -1, weight.shape[1] * prod(self.kernel))
        return split.transpose(1, 2)[..., None]

    def weight(self, blocks: Tensor) -> Tensor:
        split = blocks[..., 0].transpose(1, 2)
        return split.reshape(-1, split.shape[2] // prod(self.kernel), *self.kernel)

    def block_of(self, entries: Tensor) -> Tensor:
        return entries.reshape(self.groups, -1)

    def loudness(self, gradient: Tensor) -> Tensor:
        return _squares(self._split(gradient).permute(1, 0, 3, 2)).flatten(1)

    def columns(self, x: Tensor, rows: Tensor) -> Tensor:
        split = self._split(x)
        length = split.shape[3]
        blocks = torch.arange(self.groups, device=x.device)[:, None]
        return split[rows // length, blocks, :, rows % length][..., None]

    def positions(self, x: Tensor) -> Tensor:
        return self._split(x).permute(1, 0, 3, 2)

    def targets(self, y: Tensor, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def shift(self, shift: Tensor) -> Tensor:
        """Return what a shift of all taps' outputs, ``[g, O / g * k]``, is in each channel."""
        per_channel = shift.reshape(shift.shape[0], -1, prod(self.kernel)).sum(-1)
        return per_channel / prod(self.stride)

    def _split(self, x: Tensor) -> Tensor:
        x = x if x.ndim == len(self.kernel) + 2 else x[None]
        return _grouped(x, self.groups)  # [B, g, C, L]


def _grouped(x: Tensor, groups: int) -> Tensor:
    """``[B, G * C, *space] -> [B, G, C, L]``."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, prod(x.shape[2:]))


def _unravelled(rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Return the image and the position in each dim of space of output rows."""
    found = []
    for size in reversed(sizes):
        found.append(rows % size)
        rows = rows // size
    return [rows, *reversed(found)]
