"""Operators that only reorder, insert or drop dims."""

from __future__ import annotations

import numpy as np
import torch

from taskprune.coupling.axes import is_tracked, joined, untracked
from taskprune.coupling.context import RuleContext
from taskprune.coupling.registry import channel_rule, overloads

aten = torch.ops.aten


@channel_rule(aten.permute.default)
def _permute(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    ctx.produce([state.axes[d % len(state.axes)] for d in ctx.argument("dims")], zero=state.zero)


@channel_rule(aten.t.default, aten.t_.default)
def _t(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    ctx.produce(state.axes[::-1], zero=state.zero)


@channel_rule(aten.transpose.int, aten.transpose_.default)
def _transpose(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    axes = list(state.axes)
    a, b = ctx.dim("dim0", len(axes)), ctx.dim("dim1", len(axes))
    if axes:
        axes[a], axes[b] = axes[b], axes[a]
    ctx.produce(axes, zero=state.zero)


@channel_rule(aten.unsqueeze.default, aten.unsqueeze_.default)
def _unsqueeze(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    axes = list(state.axes)
    axes.insert(ctx.dim("dim", len(axes) + 1), ())
    ctx.produce(axes, zero=state.zero)


@channel_rule(*overloads("squeeze"))
def _squeeze(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    rank = len(state.axes)
    dims = ctx.argument("dim")
    wanted = range(rank) if dims is None else dims if isinstance(dims, tuple) else (dims,)
    gone = {d % rank for d in wanted if state.shape[d % rank] == 1} if rank else set()
    for d in {d % rank for d in wanted} - gone if rank else ():
        ctx.at_least(state.axes[d], 2)  # a dim of one channel would go
    ctx.produce([axis for d, axis in enumerate(state.axes) if d not in gone], zero=state.zero)


@channel_rule(aten.flip.default)
def _flip(ctx: RuleContext) -> None:
    """Reversing the channels that stay is the same as keeping the channels of the reversed."""
    state = ctx.tensor("self")
    axes = list(state.axes)
    for d in {d % len(axes) for d in ctx.argument("dims")}:
        if is_tracked(axes[d]):
            axes[d] = ctx.piece(np.ascontiguousarray(ctx.flat(axes[d])[::-1]))
    ctx.produce(axes, zero=state.zero)


@channel_rule(aten.roll.default)
def _roll(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    axes = list(state.axes)
    dims = ctx.argument("dims") or tuple(range(len(axes)))
    for d in {d % len(axes) for d in dims}:
        if is_tracked(axes[d]):
            ctx.freeze(axes[d], "structure", "a roll shifts channels by a number of positions")
            axes[d] = untracked(state.shape[d])
    ctx.produce(axes, zero=state.zero)


@channel_rule(aten.pixel_shuffle.default)
def _pixel_shuffle(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    *lead, channels, _, _ = state.axes
    scale = int(ctx.argument("upscale_factor")) ** 2
    kept, fixed = ctx.regroup([channels], [state.shape[-3] // scale, scale])
    ctx.fix(fixed)
    shape = ctx.output_shape()
    ctx.produce([*lead, kept, untracked(shape[-2]), untracked(shape[-1])], zero=state.zero)


@channel_rule(aten.pixel_unshuffle.default)
def _pixel_unshuffle(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    *lead, channels, _, _ = state.axes
    scale = int(ctx.argument("downscale_factor")) ** 2
    shape = ctx.output_shape()
    many = joined([channels, untracked(scale)])
    ctx.produce([*lead, many, untracked(shape[-2]), untracked(shape[-1])], zero=state.zero)


@channel_rule(*overloads("channel_shuffle", "native_channel_shuffle"))
def _channel_shuffle(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    groups = int(ctx.argument("groups"))
    fixed, kept = ctx.regroup([state.axes[1]], [groups, state.shape[1] // groups])
    ctx.fix(fixed)
    axes = list(state.axes)
    axes[1] = joined([kept, fixed])
    ctx.produce(axes, zero=state.zero)


@channel_rule(aten.im2col.default)
def _im2col(ctx: RuleContext) -> None:
    """``[batch, channels, *space] -> [batch, channels * kernel, positions]``."""
    state = ctx.tensor("self")
    shape = ctx.output_shape()
    *lead, channels, _, _ = state.axes
    many = joined([channels, untracked(shape[-2] // state.shape[-3])])
    ctx.produce([*lead, many, untracked(shape[-1])], zero=state.zero)


@channel_rule(aten.col2im.default)
def _col2im(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    shape = ctx.output_shape()
    *lead, many, _ = state.axes
    kept, fixed = ctx.regroup([many], [shape[-3], state.shape[-2] // shape[-3]])
    ctx.fix(fixed)
    ctx.produce([*lead, kept, untracked(shape[-2]), untracked(shape[-1])], zero=state.zero)


@channel_rule(*overloads("triu", "tril"))
def _triangle(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    for axis in state.axes[-2:]:
        ctx.freeze(axis, "structure", "a triangle is cut out of a matrix by position")
    ctx.produce(state.axes, zero=state.zero)


@channel_rule(aten.diagonal.default)
def _diagonal(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    rank = len(state.axes)
    a, b = ctx.dim("dim1", rank), ctx.dim("dim2", rank)
    if ctx.argument("offset") == 0 and state.shape[a] == state.shape[b]:
        ctx.tie(state.axes[a], state.axes[b])
        last = state.axes[a]
    else:
        for axis in (state.axes[a], state.axes[b]):
            ctx.freeze(axis, "structure", "a diagonal is cut out of a matrix by position")
        last = untracked(ctx.output_shape()[-1])
    rest = [axis for d, axis in enumerate(state.axes) if d not in (a, b)]
    ctx.produce([*rest, last], zero=state.zero)
