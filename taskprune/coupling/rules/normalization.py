"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from taskprune.coupling.axes import Axis, axis_size, untracked
from taskprune.coupling.context import RuleContext
from taskprune.coupling.registry import channel_rule, overloads

aten = torch.ops.aten


@channel_rule(
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_no_training.default,
    aten.cudnn_batch_norm.default,
    aten.miopen_batch_norm.default,
    aten._batch_norm_with_update.default,
    aten._batch_norm_no_update.default,
)
def _batch_norm(ctx: RuleContext) -> None:
    axes = ctx.axes("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if ctx.has(name):
            ctx.tie(axes[1], ctx.axes(name)[0])
    if ctx.argument("training") is not False:
        # Statistics of what passes through, such as a weight that is standardised.
        across = [axis for d, axis in enumerate(axes) if d != 1]
        ctx.cross(*across)
        ctx.weigh(ctx.tensor("input"), *across)
        ctx.at_least(tuple(factor for axis in across for factor in axis), 2)
    # With scale and shift zeroed the channel is zero; without them it is only constant.
    ctx.produce(axes, zero=ctx.has("weight") and ctx.has("bias"))
    _produce_statistics(ctx)


@channel_rule(aten.native_layer_norm.default)
def _layer_norm(ctx: RuleContext) -> None:
    axes = ctx.axes("input")
    normalized = axes[len(axes) - len(ctx.argument("normalized_shape")) :]
    _follow_shape(ctx, axes)
    for name in ("weight", "bias"):
        if ctx.has(name):
            for axis, own in zip(normalized, ctx.axes(name), strict=True):
                ctx.tie(axis, own)
    _cross(ctx, normalized)
    zero = ctx.has("weight") and (ctx.has("bias") or ctx.argument("bias") is None)
    ctx.produce(axes, zero=zero)
    _produce_statistics(ctx)


@channel_rule(*overloads("_fused_rms_norm"))
def _rms_norm(ctx: RuleContext) -> None:
    _layer_norm(ctx)


@channel_rule(aten.native_group_norm.default)
def _group_norm(ctx: RuleContext) -> None:
    axes = ctx.axes("input")
    groups = int(ctx.argument("group"))
    units = ctx.flat(axes[1]).reshape(groups, -1)
    for name in ("weight", "bias"):
        if ctx.has(name):
            ctx.tie(axes[1], ctx.axes(name)[0])
    if units.shape[1] == 1:
        # One channel a group: statistics of their own, and as many groups as channels.
        ctx.constrain(ctx.expr(ctx.call_argument(1, "num_groups")), ctx.piece(units[:, 0]))
    else:
        for row in units[1:]:
            ctx.units.tie(units[0], row)
        _cross(ctx, [axes[1]])
    ctx.produce(axes, zero=ctx.has("weight") and ctx.has("bias"))
    _produce_statistics(ctx)


@channel_rule(aten._weight_norm_interface.default)
def _weight_norm(ctx: RuleContext) -> None:
    """``v * g / |v|``, the norm taken over all dims but one."""
    direction, scale = ctx.axes("v"), ctx.axes("g")
    for a, b in zip(direction, scale, strict=True):
        if axis_size(a) == axis_size(b):
            ctx.tie(a, b)
        else:
            ctx.weigh(ctx.tensor("v"), a)
    ctx.produce(direction, zero=True)
    _produce_statistics(ctx)


def follow_rms_norm(ctx: RuleContext) -> None:
    """Torch may take an RMS norm apart; the sizes given to it are lengths of its input."""
    _follow_shape(ctx, ctx.analysis.state(ctx.call_argument(0, "input").value).axes)


def _follow_shape(ctx: RuleContext, axes: Sequence[Axis]) -> None:
    sizes = ctx.call_argument(1, "normalized_shape")
    if isinstance(sizes, tuple):
        for size, axis in zip(reversed(sizes), reversed(axes), strict=False):
            ctx.constrain(ctx.expr(size), axis)


def _cross(ctx: RuleContext, axes: Sequence[Axis]) -> None:
    """Note the statistic; of one that a norm layer takes, a masked model can leave channels out."""
    ctx.weigh(ctx.tensor("input"), *axes)
    kind = ctx.analysis.graph.modules.get(ctx.call.module, nn.Module)
    owns = ctx.has("weight") and ctx.analysis.graph.values[ctx.argument("weight").value].name
    known = issubclass(kind, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm)
    if owns or (known and not _runs_again(ctx)):
        ctx.cross(*axes)
    else:
        ctx.cross(*axes, statistic="a norm without parameters")


def _runs_again(ctx: RuleContext) -> bool:
    """Whether the norm's module runs several times, so that it does not tell the channels."""
    ran = [o.module for o in ctx.analysis.graph.module_outputs if o.mode == ctx.operation.mode]
    return ran.count(ctx.call.module) > 1


def _produce_statistics(ctx: RuleContext) -> None:
    """Hand on means and deviations, which nothing in a forward reads."""
    for index, number in enumerate(ctx.operation.outputs[1:], start=1):
        if number is not None:
            shape = ctx.output_shape(index)
            ctx.produce([untracked(n) for n in shape], index=index, weight=False)
