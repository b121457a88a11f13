"""Cutting tensors apart and putting them together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from taskprune.coupling.axes import Axis, axis_size, is_tracked, untracked
from taskprune.coupling.context import LITERAL, RuleContext, TensorState
from taskprune.coupling.groups import IntArray
from taskprune.coupling.registry import channel_rule, overloads
from taskprune.coupling.rules.reshape import OPAQUE_CALLS
from taskprune.graph.records import Ref, Size, Slice
from taskprune.graph.sizes import Computed, Constant, SizeExpr

aten = torch.ops.aten

_SIZED_CALLS = OPAQUE_CALLS | {"split", "split_with_sizes", ""}
"""Functions that cut by sizes; all others (``chunk``, recurrent layers) cut by number."""

_NUMBERED_CALLS = {"tensor_split", "hsplit", "vsplit", "dsplit"}
"""Functions that arrive as slices; their bounds are worked out below Python."""


@channel_rule(aten.cat.default, aten.concat.default)
def _cat(ctx: RuleContext) -> None:
    """The results' channels are those of the parts, side by side."""
    parts = [state for state in ctx.tensors("tensors") if state.shape != (0,)]
    shape = ctx.output_shape()
    dim = ctx.dim("dim", len(shape))
    axes = _common_axes(ctx, parts, skip=dim)
    along = [state.axes[dim] for state in parts]
    if len(along) == 1:
        axes.insert(dim, along[0])
    elif any(is_tracked(axis) for axis in along):
        axes.insert(dim, ctx.piece(np.concatenate([ctx.flat(axis) for axis in along])))
    else:
        axes.insert(dim, untracked(shape[dim]))
    ctx.produce(axes, zero=all(state.zero for state in parts))


@channel_rule(aten.stack.default)
def _stack(ctx: RuleContext) -> None:
    parts = ctx.tensors("tensors")
    shape = ctx.output_shape()
    axes = _common_axes(ctx, parts, skip=None)
    axes.insert(ctx.dim("dim", len(shape)), untracked(len(parts), LITERAL))
    ctx.produce(axes, zero=all(state.zero for state in parts))


def _common_axes(ctx: RuleContext, parts: Sequence[TensorState], skip: int | None) -> list[Axis]:
    """Tie the parts along all dims but one, and return their axes."""
    axes = []
    for d in range(len(parts[0].axes)):
        if d != skip:
            alike = [state.axes[d] for state in parts]
            chosen = next((axis for axis in alike if is_tracked(axis)), alike[0])
            for axis in alike:
                ctx.tie(chosen, axis)
            axes.append(chosen)
    return axes


@channel_rule(aten.slice.Tensor, aten.slice_copy.Tensor)
def _slice(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    axes = list(state.axes)
    dim = ctx.dim("dim", len(axes))
    size, length = state.shape[dim], ctx.output_shape()[dim]
    if not is_tracked(axes[dim]):
        origin = axes[dim][0].origin if axes[dim] else None
        axes[dim] = untracked(length, origin)
    else:
        units = ctx.flat(axes[dim])
        start, end = ctx.argument("start") or 0, ctx.argument("end")
        end = size if end is None else end
        step = int(ctx.argument("step") or 1)
        first = max(start + size, 0) if start < 0 else start
        if _is_cut_by_number(ctx):
            _keep_equal(ctx, axes[dim], units, first, length)
            start = end = 0  # no bound is written
        written_start, written_end = _written_bounds(ctx, start, end, size)
        if step != 1:
            ctx.freeze(axes[dim], "structure", "a slice with a step picks channels by position")
        _fix_bound(ctx, units, start, written_start)
        _fix_bound(ctx, units, end, written_end)
        axes[dim] = ctx.piece(units[first : first + length * step : step])
    ctx.produce(axes, zero=state.zero)


def _is_cut_by_number(ctx: RuleContext) -> bool:
    """Whether the bounds of a slice come from a number of pieces, not from the code."""
    if ctx.call.function not in _NUMBERED_CALLS:
        return False
    for name in ("indices_or_sections", "sections", "indices"):
        asked = ctx.call_argument(1, name)
        if asked is not None:
            return not isinstance(asked, tuple | list)
    return True


def _keep_equal(ctx: RuleContext, axis: Axis, units: IntArray, first: int, length: int) -> None:
    """Let pieces that are equal shrink alike; others stay whole."""
    if length and len(units) % length == 0 and first % length == 0:
        rows = units.reshape(-1, length)
        for row in rows[1:]:
            ctx.units.tie(rows[0], row)
    else:
        ctx.freeze(axis, "structure", "is cut into pieces of unequal size by their number")


def _fix_bound(ctx: RuleContext, units: IntArray, bound: int, written: SizeExpr) -> None:
    """As many channels must lie before a bound as the code says, or behind a negative one."""
    size = len(units)
    if bound < 0:
        behind = units[max(size + bound, 0) :]
        ctx.constrain(Computed("-", Constant(0), written), ctx.piece(behind))
    elif 0 < bound < size or (bound == size and not isinstance(written, Constant)):
        ctx.constrain(written, ctx.piece(units[:bound]))


def _written_bounds(ctx: RuleContext, start: int, end: int, size: int) -> tuple[SizeExpr, SizeExpr]:
    """Return the bounds as the code writes them; plain numbers where it does not show."""
    call = ctx.call
    if call.function == "narrow":
        begin = ctx.expr(ctx.call_argument(2, "start"), start)
        length = ctx.expr(ctx.call_argument(3, "length"), end - start)
        whole = Computed("+", begin, length)
        return begin, length if begin == Constant(0) else whole
    if call.function in ("__getitem__", "__setitem__"):
        index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
        for part in index:
            if isinstance(part, Slice) and _matches(part, start, end, size):
                begin = Constant(0) if part.start is None else ctx.expr(part.start, start)
                stop = Constant(end) if part.stop is None else ctx.expr(part.stop, end)
                return begin, stop
    return Constant(start), Constant(end)


def _matches(part: Slice, start: int, end: int, size: int) -> bool:
    def bound(value: Any, default: int) -> int:
        number = value.value if isinstance(value, Size) else value
        if number is None or isinstance(value, Ref):  # left out, or worked out with tensors
            number = default
        return min(max(number + size, 0) if number < 0 else number, size)

    return bound(part.start, 0) == bound(start, 0) and bound(part.stop, size) == bound(end, size)


@channel_rule(aten.split.Tensor, aten.unsafe_split.Tensor, aten.chunk.default)
def _split(ctx: RuleContext) -> None:
    size = ctx.argument("split_size")
    written = [size] * len(ctx.operation.outputs)
    if ctx.call.function == "split":
        written = [ctx.call_argument(1, "split_size_or_sections") or size] * len(written)
    _cut(ctx, written)


@channel_rule(aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default)
def _split_with_sizes(ctx: RuleContext) -> None:
    written = ctx.argument("split_sizes")
    if ctx.call.function in ("split", "split_with_sizes"):
        sizes = ctx.call_argument(1, "split_size_or_sections") or ctx.call_argument(
            1, "split_sizes"
        )
        if isinstance(sizes, tuple) and len(sizes) == len(written):
            written = sizes
    _cut(ctx, list(written))


def _cut(ctx: RuleContext, written: list[Any]) -> None:
    """Hand out consecutive pieces whose sizes come from the code, or from their number."""
    state = ctx.tensor("self")
    dim = ctx.dim("dim", len(state.axes))
    lengths = [ctx.output_shape(i)[dim] for i in range(len(written))]
    axis = state.axes[dim]
    pieces: list[Axis] = [untracked(n) for n in lengths]
    if is_tracked(axis):
        bounds = np.cumsum([0, *lengths])
        units = ctx.flat(axis)
        cut = [units[a:b] for a, b in pairwise(bounds)]
        pieces = [ctx.piece(part) for part in cut]
        _keep_cuts(ctx, axis, cut, pieces, written)
    for index, piece in enumerate(pieces):
        axes = list(state.axes)
        axes[dim] = piece
        ctx.produce(axes, index=index, zero=state.zero)


def _keep_cuts(
    ctx: RuleContext, axis: Axis, cut: list[IntArray], pieces: list[Axis], written: list[Any]
) -> None:
    if ctx.call.function not in _SIZED_CALLS:
        # A number of equal pieces was asked for: they stay equal when they shrink alike.
        if len({len(part) for part in cut}) > 1:
            ctx.freeze(axis, "structure", "is cut into pieces of unequal size by their number")
        else:
            for part in cut[1:]:
                ctx.units.tie(cut[0], part)
        return
    for piece, size in zip(pieces, written, strict=True):
        expr = ctx.expr(size)
        if axis_size(piece) == (size.value if isinstance(size, Size) else size):
            ctx.constrain(expr, piece)


@channel_rule(*overloads("unbind"))
def _unbind(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    dim = ctx.dim("dim", len(state.axes))
    ctx.freeze(state.axes[dim], "structure", "is taken apart into a fixed number of tensors")
    rest = [axis for d, axis in enumerate(state.axes) if d != dim]
    for index, _ in ctx.results():
        ctx.produce(rest, index=index, zero=state.zero)


@channel_rule(aten.select.int, aten.select_copy.int)
def _select(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    dim = ctx.dim("dim", len(state.axes))
    if is_tracked(state.axes[dim]):
        index = int(ctx.argument("index"))
        units = ctx.flat(state.axes[dim])
        # The entry keeps its number only while all before it stay (behind it, from the end).
        ctx.units.freeze(
            units[: index + 1] if index >= 0 else units[index:],
            ctx.reason("literal", f"the code picks entry {index} by its number"),
        )
    ctx.produce([a for d, a in enumerate(state.axes) if d != dim], zero=state.zero)
