"""Axes of tensors in terms of channel units.

Every entry along every dim of every parameter and float buffer is one integer *unit*. An axis of
a tensor inside the graph says which unit each of its entries belongs to. It is kept as a
row-major product of factors, each an array of units or an untracked size (batch, space, time), so
that a flattened ``channels x height x width`` costs as much memory as its channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from taskprune.coupling.groups import FreezeKind, IntArray


@dataclass(frozen=True, slots=True)
class Origin:
    """Why an untracked size cannot follow a tracked one, where that is known."""

    kind: FreezeKind
    detail: str


@dataclass(frozen=True, eq=False, slots=True)
class Factor:
    """One factor of an axis: ``size`` entries with their units, or untracked ones."""

    size: int
    units: IntArray | None = None
    origin: Origin | None = None


Axis: TypeAlias = tuple[Factor, ...]
"""Factors from the slowest to the fastest; an axis of length 1 has none."""


def axis_size(axis: Axis) -> int:
    """Return the length of an axis."""
    return prod(factor.size for factor in axis)


def untracked(size: int, origin: Origin | None = None) -> Axis:
    """Return an axis that pruning never changes."""
    return () if size == 1 else (Factor(size, None, origin),)


def tracked(units: IntArray) -> Axis:
    """Return an axis with one unit per entry."""
    return (Factor(len(units), units),)


def is_tracked(axis: Axis) -> bool:
    """Whether any factor of the axis has units."""
    return any(factor.units is not None for factor in axis)


def tracked_units(axis: Axis) -> list[IntArray]:
    """Return the unit arrays of the tracked factors."""
    return [factor.units for factor in axis if factor.units is not None]


def joined(axes: Sequence[Axis]) -> Axis:
    """Return the row-major product of axes; neighbouring untracked factors become one."""
    factors: list[Factor] = []
    for factor in (f for axis in axes for f in axis):
        if factors and factors[-1].units is None and factor.units is None:
            last = factors.pop()
            factors.append(Factor(last.size * factor.size, None, last.origin or factor.origin))
        else:
            factors.append(factor)
    return tuple(factors)


def matching_blocks(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[range, range]] | None:
    """Return which runs of dims a reshape maps onto each other; ``None`` if sizes disagree.

    The runs are the shortest with equal products; a dim of length 1 joins one of its neighbours.
    """
    blocks: list[tuple[range, range]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        left = right = 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, j = after[j], j + 1
        while left != right:
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
            elif right < left and j < len(after):
                right, j = right * after[j], j + 1
            else:
                return None
        blocks.append((range(i0, i), range(j0, j)))
    return blocks
