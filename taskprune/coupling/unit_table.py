"""The table of units: what rules write down about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from taskprune.coupling.axes import (
    Axis,
    Factor,
    Origin,
    axis_size,
    joined,
    matching_blocks,
    tracked,
    tracked_units,
    untracked,
)
from taskprune.coupling.groups import FreezeReason, IntArray
from taskprune.graph.sizes import Relation, SizeExpr

MAX_FLAT = 1 << 22
"""Longest axis that is written out unit by unit; longer ones are activations, not parameters."""


@dataclass(frozen=True, slots=True)
class Column:
    """One dim of a parameter or buffer: its units are ``start`` to ``start + size``."""

    name: str
    dim: int
    start: int
    size: int


@dataclass(frozen=True, eq=False, slots=True)
class Reshape:
    """A dim and the factors it is split into, or merged from.

    At most one factor can shrink, because the code reshapes the new size: entry ``(i, j, ...)``
    then lives or dies with its index in that factor.

    Attributes:
        flat: Units of the dim, ``[a * b * ...]``.
        factors: Units of each factor, or ``None`` for a fixed one.
        sizes: Length of each factor.
    """

    flat: IntArray
    factors: tuple[IntArray | None, ...]
    sizes: tuple[int, ...]
    reason: FreezeReason

    def spread(self, position: int) -> IntArray:
        """Return the units of one factor, repeated over the others, as long as ``flat``."""
        units = self.factors[position]
        return np.empty(0, np.int64) if units is None else spread(units, position, self.sizes)


def spread(units: IntArray, position: int, sizes: Sequence[int]) -> IntArray:
    """Return the units of factor ``position`` of a row-major product, one per entry of it."""
    shape = [1] * len(sizes)
    shape[position] = sizes[position]
    return np.broadcast_to(units.reshape(shape), tuple(sizes)).reshape(-1)


@dataclass(frozen=True, eq=False, slots=True)
class Constraint:
    """A size in the code that must come out as the length of an axis after pruning.

    Attributes:
        expr: The size.
        axis: What it must equal; untracked where it must keep its value.
        where: Operator, module and source line, for the report.
        relation: What holds between the size and that length, whatever is removed.
    """

    expr: SizeExpr
    axis: Axis
    where: FreezeReason
    relation: Relation = "=="


@dataclass
class UnitTable:
    """Units, ties between them, and all that keeps them from being removed.

    Attributes:
        n_units: How many there are.
        columns: Where those of parameters and buffers lie, in ascending order.
        ties: Pairs of arrays whose entries live or die together.
        frozen: Units that must stay, each with the number of its reason; -1 for those that go
            without saying (kernel dims, dims of length 1).
        reasons: The reasons.
        reshapes: See :class:`Reshape`.
        constraints: See :class:`Constraint`.
        read: Units through which a parameter reads channels that others produce.
        alike: Pairs among the ties in which a weight is made of several parameters: what it reads,
            each of them reads.
        crossings: Units over which an operator computes a statistic, with its description.
        weighed: The same for operators that see nothing but parameters and buffers.
        contracted: Units that a product of two activations sums over.
        aligned: Axes whose lengths an operator takes in multiples only, and of what.
        shortest: Axes that an operator takes from some length on only, and which.
    """

    n_units: int = 0
    columns: list[Column] = field(default_factory=list)
    ties: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    frozen: list[tuple[IntArray, int]] = field(default_factory=list)
    reasons: list[FreezeReason] = field(default_factory=list)
    reshapes: list[Reshape] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    read: list[IntArray] = field(default_factory=list)
    alike: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    crossings: list[tuple[IntArray, str]] = field(default_factory=list)
    weighed: list[tuple[IntArray, str]] = field(default_factory=list)
    contracted: list[IntArray] = field(default_factory=list)
    aligned: list[tuple[Axis, int]] = field(default_factory=list)
    shortest: list[tuple[Axis, int]] = field(default_factory=list)
    _flattened: dict[tuple[int, ...], tuple[Axis, IntArray]] = field(default_factory=dict)
    _reason_numbers: dict[FreezeReason, int] = field(default_factory=dict)

    # -- making units ----------------------------------------------------------------------

    def column(self, name: str, dim: int, size: int) -> Axis:
        """Enter one dim of a parameter or buffer and return its axis."""
        start = self.n_units
        units = self.fresh(size)
        self.columns.append(Column(name, dim, start, size))
        if size == 1:
            self.freeze(units, None)
            return ()
        return tracked(units)

    def fresh(self, size: int) -> IntArray:
        """Return units that belong to no parameter."""
        units = np.arange(self.n_units, self.n_units + size, dtype=np.int64)
        self.n_units += size
        return units

    # -- writing down ----------------------------------------------------------------------

    def freeze(self, units: IntArray, reason: FreezeReason | None) -> None:
        """Keep ``units`` for good; without a reason, they are not reported."""
        if not len(units):
            return
        number = -1
        if reason is not None:
            number = self._reason_numbers.setdefault(reason, len(self.reasons))
            if number == len(self.reasons):
                self.reasons.append(reason)
        self.frozen.append((units, number))

    def freeze_axis(self, axis: Axis, reason: FreezeReason | None) -> None:
        """Keep all units of an axis."""
        for units in tracked_units(axis):
            self.freeze(units, reason)

    def tie(self, left: IntArray, right: IntArray) -> None:
        """Let ``left[i]`` and ``right[i]`` live or die together."""
        if left is not right:
            self.ties.append((left, right))

    def tie_axes(self, left: Axis, right: Axis, reason: FreezeReason) -> None:
        """Tie two axes of equal length entry by entry; ``reason`` is for what cannot follow."""
        if left is right:
            return
        pieces = _aligned(left, right)
        if pieces is None:
            self.tie(self.flat(left, reason), self.flat(right, reason))
            return
        for a, b in pieces:
            if a.units is not None and b.units is not None:
                self.tie(a.units, b.units)
            elif a.units is not None:
                self.freeze(a.units, _because(b.origin, reason))
            elif b.units is not None:
                self.freeze(b.units, _because(a.origin, reason))

    def reading(self) -> NDArray[np.bool_]:
        """Return for each unit whether a parameter, or a weight made of it, reads through it."""
        reads = np.zeros(self.n_units, np.bool_)
        for units in self.read:
            reads[units] = True
        before = -1
        while before < (now := int(reads.sum())):
            before = now
            for left, right in self.alike:
                either = reads[left] | reads[right]
                reads[left] = reads[right] = either
        return reads

    def flat(self, axis: Axis, reason: FreezeReason) -> IntArray:
        """Return one unit per entry of ``axis``, made up for untracked ones."""
        if len(axis) == 1 and axis[0].units is not None:
            return axis[0].units
        units = tracked_units(axis)
        if not units or axis_size(axis) > MAX_FLAT:
            return self._fixed(axis, reason)
        # The axis is kept with the result, so that the ids in the key stay taken.
        key = tuple(id(f.units) if f.units is not None else -f.size for f in axis)
        if key not in self._flattened:
            self._flattened[key] = (axis, self._written_out(axis, reason))
        return self._flattened[key][1]

    def _fixed(self, axis: Axis, reason: FreezeReason) -> IntArray:
        """Freeze an axis and return made-up frozen units for it."""
        size = axis_size(axis)
        origin = next((f.origin for f in axis if f.origin is not None), None)
        self.freeze_axis(axis, reason)
        units = self.fresh(size if size <= MAX_FLAT else 1)
        self.freeze(units, _because(origin, reason))
        return units if size <= MAX_FLAT else np.broadcast_to(units, size)

    def _written_out(self, axis: Axis, reason: FreezeReason) -> IntArray:
        factors = tuple(f.units for f in axis)
        sizes = tuple(f.size for f in axis)
        live = [(units, position) for position, units in enumerate(factors) if units is not None]
        if len(live) == 1:
            return spread(*live[0], sizes)
        flat = self.fresh(axis_size(axis))
        self.reshapes.append(Reshape(flat, factors, sizes, reason))
        return flat

    # -- reshaping -------------------------------------------------------------------------

    def regroup(
        self, axes: Sequence[Axis], sizes: Sequence[int], reason: FreezeReason
    ) -> list[Axis]:
        """Return the axes of a row-major reshape of ``axes`` to ``sizes``."""
        blocks = matching_blocks([axis_size(axis) for axis in axes], sizes)
        if blocks is None:
            for axis in axes:
                self.freeze_axis(axis, reason)
            return [untracked(size) for size in sizes]
        result: list[Axis] = []
        for before, after in blocks:
            result += self._regroup_block(
                joined([axes[i] for i in before]), [sizes[j] for j in after], reason
            )
        return result

    def _regroup_block(self, axis: Axis, sizes: list[int], reason: FreezeReason) -> list[Axis]:
        real = [size for size in sizes if size != 1]
        if len(real) <= 1:
            parts: list[Axis] | None = [axis] if real else []
        else:
            parts = self._cut(axis, real, reason)
        if parts is None:
            # No common refinement of factors and sizes: entries of several channels would mix.
            self.freeze_axis(axis, reason)
            parts = [untracked(size) for size in real]
        remaining = iter(parts)
        return [next(remaining) if size != 1 else () for size in sizes]

    def _cut(self, axis: Axis, sizes: list[int], reason: FreezeReason) -> list[Axis] | None:
        """Cut an axis into consecutive axes of the given sizes, splitting factors as needed."""
        bounds = _refinement([f.size for f in axis], sizes)
        if bounds is None:
            return None
        pieces = [
            piece
            for factor, cut in zip(axis, bounds, strict=True)
            for piece in self._split(factor, cut, reason)
        ]
        result, position = [], 0
        for size in sizes:
            start, length = position, 1
            while length < size:
                length *= pieces[position].size
                position += 1
            result.append(joined([(piece,) for piece in pieces[start:position]]))
        return result

    def _split(self, factor: Factor, sizes: list[int], reason: FreezeReason) -> list[Factor]:
        if len(sizes) == 1:
            return [factor]
        if factor.units is None:
            return [Factor(size, None, factor.origin) for size in sizes]
        factors = tuple(self.fresh(size) for size in sizes)
        self.reshapes.append(Reshape(factor.units, factors, tuple(sizes), reason))
        return [Factor(len(units), units) for units in factors]


def _because(origin: Origin | None, reason: FreezeReason) -> FreezeReason:
    """Return ``reason`` with the better-known origin of the size in the way."""
    if origin is None:
        return reason
    return FreezeReason(origin.kind, origin.detail, reason.operator, reason.module, reason.source)


def _refinement(factors: Sequence[int], sizes: Sequence[int]) -> list[list[int]] | None:
    """Return how each factor is cut so that the cuts also fall on the bounds of ``sizes``.

    ``None`` where a bound of one does not divide the other.
    """
    cuts: list[list[int]] = []
    needs = iter(sizes)
    need = 1
    for factor in factors:
        cut: list[int] = []
        rest = factor
        while rest > 1:
            if need == 1:
                need = next(needs)
            step = min(rest, need)
            if rest % step or need % step:
                return None
            cut.append(step)
            rest //= step
            need //= step
        cuts.append(cut)
    return cuts


def _aligned(left: Axis, right: Axis) -> list[tuple[Factor, Factor]] | None:
    """Return factors in pairs of equal size; untracked ones are cut to fit.

    ``None`` where tracked factors of different sizes face each other.
    """
    pairs: list[tuple[Factor, Factor]] = []
    a, b = list(left)[::-1], list(right)[::-1]
    while a and b:
        x, y = a.pop(), b.pop()
        if x.size != y.size:
            small, large, rest = (x, y, b) if x.size < y.size else (y, x, a)
            if large.units is not None or large.size % small.size:
                return None
            rest.append(Factor(large.size // small.size, None, large.origin))
            cut = Factor(small.size, None, large.origin)
            x, y = (x, cut) if small is x else (cut, y)
        pairs.append((x, y))
    return None if a or b else pairs
