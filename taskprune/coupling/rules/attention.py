"""Fused scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from taskprune.coupling.axes import Axis, axis_size, is_tracked
from taskprune.coupling.context import RuleContext, TensorState
from taskprune.coupling.registry import channel_rule
from taskprune.coupling.rules.matmul import contract

aten = torch.ops.aten


@channel_rule(
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_fused_attention_overrideable.default,
)
def _attention(ctx: RuleContext) -> None:
    """``[batch, heads, n, width], [batch, heads, m, width], [batch, heads, m, value_width]``."""
    query, key, value = (ctx.tensor(name) for name in ("query", "key", "value"))
    ctx.tie(query.axes[0], key.axes[0])
    ctx.tie(query.axes[0], value.axes[0])
    for state in (key, value):
        _tie_heads(ctx, query, state)
    contract(ctx, query, query.axes[3], key, key.axes[3])
    ctx.tie(key.axes[2], value.axes[2])
    ctx.cross(key.axes[2])  # the softmax over keys
    axes = [
        next(
            (
                s.axes[d]
                for s in (query, key, value)
                if is_tracked(s.axes[d]) and s.shape[d] == query.shape[d]
            ),
            query.axes[d],
        )
        for d in (0, 1)
    ]
    for name in ("attn_mask", "attn_bias"):
        if ctx.has(name):
            _tie_mask(ctx, ctx.tensor(name).axes, [*axes, query.axes[2], key.axes[2]])
    ctx.produce([*axes, query.axes[2], value.axes[3]], zero=value.zero)
    ctx.produce_fixed()
    ctx.count(1, *axes, query.axes[2], key.axes[2], query.axes[3])
    ctx.count(1, *axes, query.axes[2], key.axes[2], value.axes[3])


def _tie_heads(ctx: RuleContext, query: TensorState, state: TensorState) -> None:
    """Tie each head of a key or value to the equally many query heads in a row that share it."""
    heads, own = query.shape[1], state.shape[1]
    if heads == own:
        ctx.tie(query.axes[1], state.axes[1])
    else:
        shared, _ = ctx.regroup([query.axes[1]], [own, heads // own])
        ctx.tie(shared, state.axes[1])


def _tie_mask(ctx: RuleContext, mask: Sequence[Axis], scores: Sequence[Axis]) -> None:
    """Tie what is added to the scores, such as a position bias per head, where not broadcast."""
    for mask_axis, score_axis in zip(reversed(mask), reversed(scores), strict=False):
        if axis_size(mask_axis) == axis_size(score_axis):
            ctx.tie(score_axis, mask_axis)


def keep_default_scale(ctx: RuleContext) -> None:
    """Without ``scale=`` attention divides by the square root of the width that it sees."""
    if ctx.call_argument(6, "scale") is None:
        ctx.freeze(
            ctx.analysis.state(ctx.call.args[0].value).axes[-1],
            "structure",
            "attention without `scale=` divides by the square root of this width",
        )
