"""Views, expansions and repetitions: operators whose sizes the code writes down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from taskprune.coupling.axes import Axis, axis_size, is_tracked, joined, untracked
from taskprune.coupling.context import RuleContext, TensorState
from taskprune.coupling.registry import channel_rule
from taskprune.coupling.rules.elementwise import shared_axis
from taskprune.graph.records import Size
from taskprune.graph.sizes import Constant, SizeExpr

aten = torch.ops.aten

OPAQUE_CALLS = frozenset({"multi_head_attention_forward"})
"""Python functions of torch that compute sizes out of the trace's sight."""

_BROADCASTING_CALLS = frozenset(
    {
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "einsum",
        "broadcast_to",
        "tensordot",
        "scaled_dot_product_attention",
        "take_along_dim",
    }
)
"""Functions that expand one operand to the size of another, which they then meet."""


@channel_rule(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.view_copy.default,
    aten._reshape_alias.default,
)
def _view(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    shape = ctx.output_shape()
    axes = ctx.regroup(state.axes, shape)
    for axis, expr in zip(axes, _written_sizes(ctx, shape), strict=True):
        if expr is not None:
            ctx.constrain(expr, axis)
    if ctx.call.function in ("view_as", "reshape_as"):
        for axis, other in zip(axes, ctx.call_tensors()[1].axes, strict=True):
            ctx.tie(axis, other)
    ctx.produce(axes, zero=state.zero)


def _written_sizes(ctx: RuleContext, shape: tuple[int, ...]) -> list[SizeExpr | None]:
    """Return the size of each dim as the code writes it; ``None`` where it is left open."""
    function = ctx.call.function
    if function in ("view", "reshape"):
        sizes = ctx.call_sizes(1, "shape") or ctx.call_sizes(1, "size")
        if sizes is not None and len(sizes) == len(shape):
            return [_open_or_expr(ctx, s, n) for s, n in zip(sizes, shape, strict=True)]
    if function == "unflatten":
        inner = ctx.call_argument(2, "sizes")
        rank = len(shape) - len(inner) + 1
        first = int(ctx.call_number(1, "dim")) % rank
        rest = [None] * (len(shape) - first - len(inner))
        return [*[None] * first, *(_open_or_expr(ctx, size) for size in inner), *rest]
    if function in OPAQUE_CALLS:
        return [Constant(n) for n in shape]
    # Torch itself works the sizes out of those of the operands.
    return [None] * len(shape)


def _open_or_expr(ctx: RuleContext, size: Any, result: int | None = None) -> SizeExpr | None:
    value = size.value if isinstance(size, Size) else size
    return None if value == -1 else ctx.expr(size, result)


@channel_rule(aten.expand.default, aten.expand_copy.default)
def _expand(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    shape = ctx.output_shape()
    if ctx.call.function in _COMMON_SIZES:
        axes = _COMMON_SIZES[ctx.call.function](ctx)
        ctx.produce(axes, zero=state.zero and _has_all(state, axes))
        return
    written = _written_expansion(ctx, shape)
    missing = len(shape) - len(state.axes)
    axes = []
    for d, (size, expr) in enumerate(zip(shape, written, strict=True)):
        before = state.axes[d - missing] if d >= missing else ()
        if axis_size(before) == size:
            if expr is not None:
                ctx.constrain(expr, before)
            axes.append(before)
        elif expr is None and ctx.call.function not in _BROADCASTING_CALLS:
            axes.append(ctx.following(size, Constant(size)))
        else:
            axes.append(ctx.following(size, expr))
    ctx.produce(axes, zero=state.zero and _has_all(state, axes))


def _has_all(state: TensorState, axes: Sequence[Axis]) -> bool:
    """Whether a tensor has all channels of what it is expanded to: along others it is the same."""
    missing = len(axes) - len(state.axes)
    return all(
        d >= missing and is_tracked(state.axes[d - missing])
        for d, axis in enumerate(axes)
        if is_tracked(axis)
    )


def follow_broadcast(ctx: RuleContext) -> list[Axis]:
    """Tie the operands of the call, and return the axes they have once they are equally large.

    No operator need run for that: ``broadcast_tensors`` returns equally large ones as they are.
    """
    operands = ctx.call_tensors()
    shape = np.broadcast_shapes(*(state.shape for state in operands))
    return [shared_axis(ctx, operands, len(shape) - d, n) for d, n in enumerate(shape)]


def _grid(ctx: RuleContext) -> list[Axis]:
    """Every operand of ``meshgrid`` is one dim of all results."""
    operands = ctx.call_tensors()
    if ctx.call_argument(len(ctx.call.args), "indexing") == "xy":
        operands[:2] = operands[1::-1]
    return [state.axes[0] if state.axes else () for state in operands]


_COMMON_SIZES = {
    **dict.fromkeys(("expand_as", "broadcast_tensors", "normalize"), follow_broadcast),
    "meshgrid": _grid,
}
"""Functions whose operands come out in one size, though nothing makes the results meet."""


def _written_expansion(ctx: RuleContext, shape: tuple[int, ...]) -> list[SizeExpr | None]:
    if ctx.call.function in ("expand", "broadcast_to"):
        sizes = ctx.call_sizes(1, "size") or ctx.call_sizes(1, "shape")
        if sizes is not None and len(sizes) == len(shape):
            return [_open_or_expr(ctx, s, n) for s, n in zip(sizes, shape, strict=True)]
    return [None] * len(shape)


@channel_rule(aten.repeat.default)
def _repeat(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    repeats = ctx.argument("repeats")
    written: tuple[Any, ...] | None = None
    if ctx.call.function in ("repeat", "tile"):
        written = ctx.call_sizes(1, "repeats") or ctx.call_sizes(1, "dims")
    if written is None or len(written) != len(repeats):
        written = repeats
    missing = len(repeats) - len(state.axes)
    axes = []
    zero = state.zero
    for d, (times, size) in enumerate(zip(repeats, written, strict=True)):
        before = state.axes[d - missing] if d >= missing else ()
        copies = ctx.following(times, ctx.expr(size))
        axes.append(joined([copies, before]))
        zero = zero and not is_tracked(copies)  # copies are alike, those that go as well
    ctx.produce(axes, zero=zero)


@channel_rule(aten.unfold.default)
def _windows(ctx: RuleContext) -> None:
    """Windows along one dim, each of which becomes the last dim."""
    state = ctx.tensor("self")
    axes = list(state.axes)
    dim = ctx.dim("dimension", len(axes))
    ctx.freeze(axes[dim], "structure", "is cut into windows by position")
    axes[dim] = untracked(ctx.output_shape()[dim])
    ctx.produce([*axes, untracked(ctx.output_shape()[-1])], zero=state.zero)


@channel_rule(aten.as_strided_.default, aten.as_strided.default)
def _as_strided(ctx: RuleContext) -> None:
    """Torch's own code uses it to lay out the same sizes anew; anything else is out of sight."""
    state = ctx.tensor("self")
    shape = ctx.output_shape()
    if shape == tuple(ctx.argument("size")) == state.shape:
        ctx.produce(state.axes, zero=state.zero)
    else:
        for axis in state.axes:
            ctx.freeze(axis, "structure", "entries are picked by their places in memory")
        ctx.produce_fixed()
