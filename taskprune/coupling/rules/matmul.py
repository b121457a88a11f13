"""Matrix products; linear layers reach the dispatcher as one of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from taskprune.coupling.axes import Axis, axis_size, is_tracked
from taskprune.coupling.context import RuleContext, TensorState
from taskprune.coupling.registry import channel_rule, overloads

aten = torch.ops.aten

_COVARIANCES = ("cov", "corrcoef")
"""Products over observations that are divided by their number less the correction."""


@channel_rule(aten.mm.default, aten.bmm.default)
def _mm(ctx: RuleContext) -> None:
    _product(ctx, ctx.tensor("self"), ctx.tensor("mat2"))
    if ctx.call.function in _COVARIANCES:
        correction = ctx.call_number(1, "correction")
        ctx.at_least(ctx.axes("self")[-1], 1 + (1 if correction is None else correction))


@channel_rule(aten.addmm.default, aten.addmm_.default)
def _addmm(ctx: RuleContext) -> None:
    _product(ctx, ctx.tensor("mat1"), ctx.tensor("mat2"), ctx.tensor("self"))


@channel_rule(aten.baddbmm.default)
def _baddbmm(ctx: RuleContext) -> None:
    _product(ctx, ctx.tensor("batch1"), ctx.tensor("batch2"), ctx.tensor("self"))


@channel_rule(*overloads("_grouped_mm"))
def _grouped(ctx: RuleContext) -> None:
    """``[rows, k] @ [groups, k, m]``: consecutive rows meet a matrix of their own each."""
    left, right = ctx.tensor("self"), ctx.tensor("mat2")
    if (len(left.axes), len(right.axes)) != (2, 3):
        for axis in (*left.axes, *right.axes):
            ctx.freeze(axis, "structure", "is cut into groups of rows by position")
        ctx.produce_fixed()
        return
    rows, inner = left.axes
    groups, inner_right, columns = right.axes
    for axis in (rows, groups):
        ctx.freeze(axis, "structure", "each group of rows meets a matrix by its number")
    contract(ctx, left, inner, right, inner_right)
    # Torch asks for rows that begin at multiples of 16 bytes, whichever way a matrix lies.
    for name, axes in (("self", (rows, inner)), ("mat2", (inner_right, columns))):
        value = ctx.value(name)
        along = axes[0] if value.strides[-2:-1] == (1,) else axes[1]
        ctx.align(along, 16 // value.dtype.itemsize)
    if ctx.has("bias"):
        for axis, own in zip(ctx.axes("bias")[::-1], (columns, groups), strict=False):
            ctx.tie(own, axis)
    zero = right.zero or not is_tracked(columns)
    ctx.produce([rows, columns], zero=zero and not ctx.has("bias"))
    ctx.count(1, rows, inner, columns)


@channel_rule(aten.mv.default)
def _mv(ctx: RuleContext) -> None:
    matrix, vector = ctx.tensor("self"), ctx.tensor("vec")
    contract(ctx, matrix, matrix.axes[1], vector, vector.axes[0])
    ctx.produce([matrix.axes[0]], zero=matrix.zero)


@channel_rule(aten.dot.default, aten.vdot.default)
def _dot(ctx: RuleContext) -> None:
    left = ctx.tensor("self")
    right = ctx.tensor("tensor" if ctx.has("tensor") else "other")
    contract(ctx, left, left.axes[0], right, right.axes[0])
    ctx.produce([])


@channel_rule(aten._trilinear.default)
def _bilinear(ctx: RuleContext) -> None:
    """The product of three tensors, each with more dims of length 1, summed over some dims."""
    states = [ctx.tensor(name) for name in ("i1", "i2", "i3")]
    operands: list[list[Axis]] = []
    for state, name in zip(states, ("expand1", "expand2", "expand3"), strict=True):
        axes = list(state.axes)
        for d in sorted(ctx.argument(name)):
            axes.insert(d, ())
        operands.append(axes)
    common: list[Axis] = []
    for own in zip(*operands, strict=True):
        chosen = next((axis for axis in own if is_tracked(axis)), max(own, key=axis_size))
        for axis in own:
            if axis_size(axis) == axis_size(chosen):
                ctx.tie(chosen, axis)
        common.append(chosen)
    gone = {d % len(common) for d in ctx.argument("sumdim")}
    for d in gone:
        for state, axes in zip(states, operands, strict=True):
            ctx.read(state, axes[d])
            ctx.contract(state, axes[d])
        if not any(s.zero and is_tracked(o[d]) for s, o in zip(states, operands, strict=True)):
            ctx.cross(common[d])
    left = [axis for d, axis in enumerate(common) if d not in gone]
    zero = all(
        any(s.zero and is_tracked(o[d]) for s, o in zip(states, operands, strict=True))
        for d, axis in enumerate(common)
        if d not in gone and is_tracked(axis)
    )
    ctx.produce(left, zero=zero)


def _product(
    ctx: RuleContext, left: TensorState, right: TensorState, bias: TensorState | None = None
) -> None:
    """``[*batch, n, k] @ [*batch, k, m] (+ bias)``."""
    *left_batch, rows, inner = left.axes
    *right_batch, inner_right, columns = right.axes
    for a, b in zip(left_batch, right_batch, strict=True):
        ctx.tie(a, b)
    contract(ctx, left, inner, right, inner_right)
    batch = [a if is_tracked(a) else b for a, b in zip(left_batch, right_batch, strict=True)]
    axes = [*batch, rows, columns]
    if bias is not None:
        _tie_broadcast(ctx, axes, bias)
    zero = (
        (left.zero or not is_tracked(rows))
        and (right.zero or not is_tracked(columns))
        and (left.zero or right.zero or not any(is_tracked(a) for a in batch))
        and (bias is None or bias.zero)
    )
    ctx.produce(axes, zero=zero)
    ctx.count(1, *batch, rows, inner, columns)


def contract(
    ctx: RuleContext, left: TensorState, inner: Axis, right: TensorState, inner_right: Axis
) -> None:
    """Tie the axes that a product sums over; zero entries add nothing to the sum."""
    ctx.tie(inner, inner_right)
    if left.weight != right.weight:
        ctx.read(left, inner)
        ctx.read(right, inner_right)
    else:
        ctx.weigh(left, inner, inner_right)
        ctx.contract(left, inner)
    if not (left.zero or right.zero):
        ctx.cross(inner, inner_right)


def _tie_broadcast(ctx: RuleContext, axes: Sequence[Axis], state: TensorState) -> None:
    for axis, other in zip(list(axes)[::-1], list(state.axes)[::-1], strict=False):
        if axis_size(axis) == axis_size(other):
            ctx.tie(axis, other)
