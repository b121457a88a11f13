"""Convolutions: plain, grouped, depthwise and transposed, of any rank."""

from __future__ import annotations

import numpy as np
import torch

from taskprune.coupling.axes import Axis, axis_size, joined, tracked, untracked
from taskprune.coupling.context import RuleContext, spatial, volume
from taskprune.coupling.groups import IntArray
from taskprune.coupling.registry import channel_rule

aten = torch.ops.aten


@channel_rule(aten.convolution.default, aten._convolution.default)
def _convolution(ctx: RuleContext) -> None:
    """Weight ``[out, in / groups, *kernel]``, transposed ``[in, out / groups, *kernel]``."""
    if isinstance(ctx.argument("weight"), tuple):
        _unequal_groups(ctx)
        return
    inputs, weight = ctx.tensor("input"), ctx.tensor("weight")
    for kernel in weight.axes[2:]:
        ctx.fix(kernel)
    for positions in inputs.axes[2:]:
        ctx.freeze(positions, "structure", "is convolved as a dim of space")
    groups = int(ctx.argument("groups"))
    transposed = bool(ctx.argument("transposed"))
    if groups == 1:
        reads, makes = (0, 1) if transposed else (1, 0)
        ctx.tie(inputs.axes[1], weight.axes[reads])
        ctx.read(weight, weight.axes[reads])
        channels = weight.axes[makes]
    elif transposed:
        channels = _grouped_transposed(ctx, groups)
    else:
        channels = _grouped(ctx, groups)
    if ctx.has("bias"):
        ctx.tie(channels, ctx.axes("bias")[0])
    shape = ctx.output_shape()
    ctx.produce([inputs.axes[0], channels, *spatial(shape, 2)], zero=True)
    n_positions = volume((inputs.shape if transposed else shape)[2:])
    kernel_size = volume(weight.shape[2:])
    ctx.count(n_positions * kernel_size, inputs.axes[0], weight.axes[0], weight.axes[1])


def _unequal_groups(ctx: RuleContext) -> None:
    """A weight for each group: see :mod:`taskprune.coupling.splitting`."""
    inputs, weights = ctx.tensor("input"), ctx.tensors("weight")
    transposed = bool(ctx.argument("transposed"))
    reads, makes = (0, 1) if transposed else (1, 0)
    for positions in inputs.axes[2:]:
        ctx.freeze(positions, "structure", "is convolved as a dim of space")
    shape = ctx.output_shape()
    n_positions = volume((inputs.shape if transposed else shape)[2:])
    channels = ctx.flat(inputs.axes[1]).reshape(len(weights), -1)
    made = []
    for weight, units in zip(weights, channels, strict=True):
        for kernel in weight.axes[2:]:
            ctx.fix(kernel)
        ctx.units.tie(units, ctx.flat(weight.axes[reads]))
        ctx.read(weight, weight.axes[reads])
        made.append(ctx.flat(weight.axes[makes]))
        ctx.count(n_positions * volume(weight.shape[2:]), inputs.axes[0], *weight.axes[:2])
    if isinstance(ctx.argument("bias"), tuple):
        for units, bias in zip(made, ctx.tensors("bias"), strict=True):
            ctx.units.tie(units, ctx.flat(bias.axes[0]))
    outputs = tracked(np.concatenate(made))
    ctx.produce([inputs.axes[0], outputs, *spatial(shape, 2)], zero=True)


def _grouped(ctx: RuleContext, groups: int) -> Axis:
    weight = ctx.tensor("weight")
    reads = ctx.flat(ctx.axes("input")[1]).reshape(groups, -1)
    makes = ctx.flat(weight.axes[0]).reshape(groups, -1)
    if 1 in (reads.shape[1], makes.shape[1]):
        # One filter, or one input, a group (depthwise): the group goes as a whole.
        _tie_columns(ctx, reads)
        _tie_columns(ctx, makes)
        ctx.units.tie(reads[:, 0], makes[:, 0])
        ctx.fix(weight.axes[1])
        _follow_groups(ctx, reads[:, 0])
    else:
        # All groups keep the same positions, so that they stay equally large.
        _tie_columns(ctx, reads.T)
        _tie_columns(ctx, makes.T)
        ctx.units.tie(reads[0], ctx.flat(weight.axes[1]))
        ctx.read(weight, weight.axes[1])
    return weight.axes[0]


def _grouped_transposed(ctx: RuleContext, groups: int) -> Axis:
    weight = ctx.tensor("weight")
    ctx.tie(ctx.axes("input")[1], weight.axes[0])
    reads = ctx.flat(weight.axes[0]).reshape(groups, -1)
    if 1 in (reads.shape[1], axis_size(weight.axes[1])):
        _tie_columns(ctx, reads)
        ctx.fix(weight.axes[1])
        _follow_groups(ctx, reads[:, 0])
        return joined([tracked(reads[:, 0].copy()), untracked(axis_size(weight.axes[1]))])
    _tie_columns(ctx, reads.T)
    ctx.read(weight, weight.axes[0])
    return joined([untracked(groups), weight.axes[1]])


def _tie_columns(ctx: RuleContext, units: IntArray) -> None:
    """Tie each row's units to each other."""
    for column in range(1, units.shape[1]):
        ctx.units.tie(units[:, 0], units[:, column])


def _follow_groups(ctx: RuleContext, units: IntArray) -> None:
    """The number of groups, an argument of the call, must follow."""
    ctx.constrain(ctx.expr(ctx.call_argument(6, "groups")), ctx.piece(units))
