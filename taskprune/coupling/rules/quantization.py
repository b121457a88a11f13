"""Fake quantisation: entries rounded to what an integer could hold, by ranges that are watched."""

from __future__ import annotations

import torch

from taskprune.coupling.axes import axis_size
from taskprune.coupling.context import RuleContext
from taskprune.coupling.registry import channel_rule, overloads

aten = torch.ops.aten

_RANGES = ("running_min", "running_max", "scale", "zero_point")


@channel_rule(*overloads("_fused_moving_avg_obs_fq_helper"))
def _observed(ctx: RuleContext) -> None:
    """A range for each entry of one dim, or one for all; zero is always one of the values."""
    state = ctx.tensor("self")
    if ctx.argument("per_row_fake_quant"):
        _tie_ranges(ctx, int(ctx.argument("ch_axis")))
    else:
        ctx.cross(*state.axes)
        ctx.weigh(state, *state.axes)
    for index, _ in ctx.results():
        ctx.produce(state.axes, index=index, zero=state.zero)


@channel_rule(
    *overloads("fake_quantize_per_channel_affine", "fake_quantize_per_channel_affine_cachemask"),
    *overloads("_fake_quantize_learnable_per_channel_affine"),
)
def _by_channel(ctx: RuleContext) -> None:
    _tie_ranges(ctx, int(ctx.argument("axis")))
    state = ctx.tensor("self")
    for index, _ in ctx.results():
        ctx.produce(state.axes, index=index, zero=state.zero)


@channel_rule(
    *overloads("fake_quantize_per_tensor_affine", "fake_quantize_per_tensor_affine_cachemask"),
    *overloads("_fake_quantize_per_tensor_affine_cachemask_tensor_qparams"),
    *overloads("_fake_quantize_learnable_per_tensor_affine"),
)
def _by_one_scale(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    for index, _ in ctx.results():
        ctx.produce(state.axes, index=index, zero=state.zero)


def _tie_ranges(ctx: RuleContext, dim: int) -> None:
    axes = ctx.tensor("self").axes
    axis = axes[dim % len(axes)]
    for name in _RANGES:
        # Before the first batch there are no ranges yet; the operator makes as many as it needs.
        if ctx.has(name) and ctx.tensor(name).shape == (axis_size(axis),):
            ctx.tie(axis, ctx.axes(name)[0])
