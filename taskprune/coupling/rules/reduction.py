"""Operators that summarise dims, and softmax."""

from __future__ import annotations

import math

import torch

from taskprune.coupling.axes import Axis, is_tracked, untracked
from taskprune.coupling.context import RuleContext
from taskprune.coupling.registry import channel_rule, overloads
from taskprune.coupling.rules.elementwise import pointwise

aten = torch.ops.aten


@channel_rule(*overloads("sum", "nansum", "norm", "linalg_vector_norm"))
def _sum(ctx: RuleContext) -> None:
    """Zeros add nothing, so a sum over channels that are zero does not miss them."""
    _reduce(ctx, crosses=not ctx.tensor("self").zero)


@channel_rule(
    *overloads(
        "mean", "nanmean", "amax", "amin", "max", "min", "prod",
        "logsumexp", "all", "any", "aminmax", "_is_all_true", "_is_any_true",
    )
)  # fmt: skip
def _summarise(ctx: RuleContext) -> None:
    if ctx.has("other"):
        pointwise(ctx, zero=False)
    else:
        _reduce(ctx, crosses=True)


@channel_rule(*overloads("var", "std", "var_mean", "std_mean"))
def _spread(ctx: RuleContext) -> None:
    """Of as many entries as are taken off their number, it is not a number."""
    state, correction = ctx.tensor("self"), ctx.argument("correction")
    if correction is None:
        correction = int(ctx.argument("unbiased") is not False)
    entries = tuple(factor for d in sorted(_reduced_dims(ctx)) for factor in state.axes[d])
    ctx.at_least(entries, math.floor(correction) + 1)
    _reduce(ctx, crosses=True)


@channel_rule(*overloads("argmax", "argmin"))
def _arg(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    for d in _reduced_dims(ctx):
        ctx.freeze(state.axes[d], "structure", "positions along this dim are returned")
    _reduce(ctx, crosses=False)


@channel_rule(*overloads("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax"))
def _softmax(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    if state.axes:
        axis = state.axes[ctx.dim("dim", len(state.axes))]
        ctx.cross(axis)
        ctx.weigh(state, axis)
    ctx.produce(state.axes)


@channel_rule(aten.glu.default)
def _glu(ctx: RuleContext) -> None:
    """The halves are multiplied with each other and stay equally long."""
    state = ctx.tensor("self")
    axes = list(state.axes)
    dim = ctx.dim("dim", len(axes))
    if is_tracked(axes[dim]):
        first, second = ctx.flat(axes[dim]).reshape(2, -1)
        ctx.units.tie(first, second)
        axes[dim] = ctx.piece(first)
    else:
        axes[dim] = untracked(ctx.output_shape()[dim])
    ctx.produce(axes, zero=state.zero)


def _reduced_dims(ctx: RuleContext) -> set[int]:
    rank = len(ctx.tensor("self").axes)
    dims = ctx.argument("dim")
    if dims is None or dims == () or rank == 0:
        return set(range(rank))
    return {d % rank for d in (dims if isinstance(dims, tuple) else (dims,))}


def _reduce(ctx: RuleContext, *, crosses: bool) -> None:
    state = ctx.tensor("self")
    gone = _reduced_dims(ctx)
    keep = bool(ctx.argument("keepdim"))
    axes: list[Axis] = []
    for d, axis in enumerate(state.axes):
        if d not in gone:
            axes.append(axis)
        else:
            ctx.weigh(state, axis)
            if crosses:
                ctx.cross(axis)
            if keep:
                axes.append(())
    left = any(is_tracked(axis) for axis in axes)
    for index, _ in ctx.results():
        ctx.produce(axes, index=index, zero=state.zero and left)
