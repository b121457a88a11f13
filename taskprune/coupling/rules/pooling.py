"""Operators on the space of a map: pooling, resampling, padding."""

from __future__ import annotations

import numpy as np
import torch

from taskprune.coupling.axes import Axis, is_tracked, untracked
from taskprune.coupling.context import RuleContext, spatial
from taskprune.coupling.registry import channel_rule, overloads

aten = torch.ops.aten

_ONE_DIM = overloads(
    "avg_pool1d", "adaptive_avg_pool1d", "max_pool1d", "max_pool1d_with_indices",
    "adaptive_max_pool1d", "upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_linear1d",
    "reflection_pad1d", "replication_pad1d",
)  # fmt: skip
_TWO_DIMS = overloads(
    "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d",
    "max_pool2d_with_indices", "adaptive_max_pool2d",
    "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d",
    "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
    "reflection_pad2d", "replication_pad2d",
)  # fmt: skip
_THREE_DIMS = overloads(
    "avg_pool3d", "adaptive_avg_pool3d", "_adaptive_avg_pool3d", "max_pool3d",
    "max_pool3d_with_indices", "adaptive_max_pool3d", "upsample_nearest3d",
    "_upsample_nearest_exact3d", "upsample_trilinear3d", "reflection_pad3d", "replication_pad3d",
)  # fmt: skip


@channel_rule(*overloads("max_unpool2d", "max_unpool3d"))
def _unpool(ctx: RuleContext) -> None:
    """Every channel goes back to the places that its own indices tell."""
    state, indices = ctx.tensor("self"), ctx.tensor("indices")
    rank = len(ctx.argument("output_size"))
    for axis, own in zip(state.axes[:-rank], indices.axes[:-rank], strict=True):
        ctx.tie(axis, own)
    for size in ctx.call_argument(5, "output_size") or ():
        ctx.expr(size)  # those of batch and channels, if given, are not looked at
    _over_space(ctx, rank)


@channel_rule(*overloads("fractional_max_pool2d", "fractional_max_pool3d"))
def _fractional_pool(ctx: RuleContext) -> None:
    """Samples ``[batch, channels, rank]`` tell where the windows of each channel begin."""
    state, samples = ctx.tensor("self"), ctx.tensor("random_samples")
    rank = samples.shape[-1]
    for axis, own in zip(state.axes[-rank - 1 :: -1], samples.axes[-2::-1], strict=False):
        ctx.tie(axis, own)
    ctx.fix(samples.axes[-1])
    _over_space(ctx, rank)


def _over_space(ctx: RuleContext, rank: int) -> None:
    """Every channel for itself, over the last ``rank`` dims."""
    state = ctx.tensors()[0]
    lead = len(state.axes) - rank
    for axis in state.axes[lead:]:
        ctx.freeze(axis, "structure", "is resampled as a dim of space")
    for index, shape in ctx.results():
        axes = [*state.axes[:lead], *spatial(shape, lead)]
        ctx.produce(axes, index=index, zero=state.zero)


for _rank, _operators in enumerate((_ONE_DIM, _TWO_DIMS, _THREE_DIMS), start=1):
    channel_rule(*_operators)(lambda ctx, rank=_rank: _over_space(ctx, rank))  # type: ignore[misc]


@channel_rule(*overloads("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler"))
def _grid_sample(ctx: RuleContext) -> None:
    """``[batch, channels, *space]`` read at ``[batch, *positions, coordinates]``."""
    state, grid = ctx.tensor("input"), ctx.tensor("grid")
    ctx.tie(state.axes[0], grid.axes[0])
    for axis in (*state.axes[2:], grid.axes[-1]):
        ctx.freeze(axis, "structure", "is a dim of space")
    batch = state.axes[0] if is_tracked(state.axes[0]) else grid.axes[0]
    ctx.produce([batch, state.axes[1], *grid.axes[1:-1]], zero=state.zero)


def follow_affine_grid(ctx: RuleContext) -> None:
    """The grid depends on the space alone of the size that is given."""
    for size in (ctx.call_argument(1, "size") or ())[1:2]:
        ctx.expr(size)


@channel_rule(aten.constant_pad_nd.default)
def _pad(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    pad = ctx.argument("pad")
    shape = ctx.output_shape()
    axes: list[Axis] = list(state.axes)
    for back in range(len(pad) // 2):
        d = len(axes) - 1 - back
        before, after = pad[2 * back], pad[2 * back + 1]
        if before == after == 0:
            continue
        if not is_tracked(axes[d]) or min(before, after) < 0:
            ctx.freeze(axes[d], "literal", f"is cropped by {before} and {after} entries")
            axes[d] = untracked(shape[d])
        else:
            parts = [ctx.units.fresh(before), ctx.flat(axes[d]), ctx.units.fresh(after)]
            for made in (parts[0], parts[2]):
                ctx.units.freeze(made, ctx.reason("literal", "padding of a fixed width"))
            axes[d] = ctx.piece(np.concatenate(parts))
    ctx.produce(axes, zero=state.zero)
