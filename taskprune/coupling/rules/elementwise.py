"""Operators that treat every entry alike, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from taskprune.coupling.axes import Axis, axis_size, is_tracked
from taskprune.coupling.context import RuleContext, TensorState
from taskprune.coupling.registry import channel_rule, overloads

aten = torch.ops.aten

_ZERO_STAYS_ZERO = overloads(
    "relu", "relu6", "silu", "gelu", "hardswish", "leaky_relu", "elu", "celu", "selu", "tanh",
    "mish", "softsign", "neg", "abs", "sqrt", "sin", "tan", "asin", "atan", "sinh", "asinh",
    "atanh", "expm1", "log1p", "erf", "sign", "sgn", "round", "floor", "ceil", "trunc", "frac",
    "square", "hardshrink", "softshrink", "prelu", "_prelu_kernel", "rrelu_with_noise",
    "nan_to_num", "native_dropout", "dropout", "alpha_dropout", "feature_dropout", "real", "conj",
    "_conj", "_neg_view", "conj_physical", "_conj_physical", "angle", "deg2rad", "rad2deg", "ldexp",
)  # fmt: skip
_ZERO_IS_MOVED = overloads(
    "sigmoid", "hardsigmoid", "log_sigmoid_forward", "exp", "exp2", "log", "log2", "log10", "rsqrt",
    "reciprocal", "cos", "acos", "cosh", "acosh", "softplus", "logit", "erfc", "erfinv",
    "lgamma", "digamma",
    "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "logical_not",
    "logical_and", "logical_or", "logical_xor", "bitwise_not", "bitwise_and", "bitwise_or",
    "bitwise_xor", "__lshift__", "__rshift__", "remainder", "fmod", "atan2", "hypot",
    "logaddexp", "logaddexp2", "floor_divide", "masked_fill", "lerp", "addcmul", "addcdiv",
    "bernoulli", "uniform", "polar", "xlogy", "heaviside", "copysign",
    "nextafter", "fill", "zero", "random", "exponential", "bitwise_left_shift",
    "bitwise_right_shift", "isposinf", "isneginf", "signbit", "silu_backward",
    "sigmoid_backward",
)  # fmt: skip
_NORMAL = [form for form in overloads("normal") if form is not aten.normal.float_float]
_ZERO_IF_ALL = overloads("maximum", "minimum", "fmax", "fmin", "where", "copy", "complex")


@channel_rule(*_ZERO_STAYS_ZERO)
def _keeps_zero(ctx: RuleContext) -> None:
    pointwise(ctx, zero=_carriers(ctx, ctx.tensors()[:1]))


@channel_rule(*_ZERO_IS_MOVED, *_NORMAL)
def _moves_zero(ctx: RuleContext) -> None:
    pointwise(ctx, zero=False)


@channel_rule(*_ZERO_IF_ALL)
def _keeps_common_zero(ctx: RuleContext) -> None:
    tensors = [state for state in ctx.tensors() if state.shape]
    pointwise(ctx, zero=all(_carriers(ctx, [state]) for state in tensors[-2:]))


@channel_rule(*overloads("mul"))
def _multiply(ctx: RuleContext) -> None:
    pointwise(ctx, zero=any(_carriers(ctx, [state]) for state in ctx.tensors()))


@channel_rule(*overloads("div"))
def _divide(ctx: RuleContext) -> None:
    pointwise(ctx, zero=_carriers(ctx, ctx.tensors()[:1]))


@channel_rule(*overloads("add", "sub", "rsub"))
def _add(ctx: RuleContext) -> None:
    number = None if ctx.has("other") else ctx.argument("other")
    pointwise(ctx, zero=not number and _carriers(ctx, ctx.tensors()))


@channel_rule(*overloads("pow", "float_power"))
def _power(ctx: RuleContext) -> None:
    exponent = ctx.argument("exponent")
    positive = isinstance(exponent, int | float) and exponent > 0
    pointwise(ctx, zero=positive and _carriers(ctx, ctx.tensors()[:1]))


@channel_rule(*overloads("clamp", "clamp_min", "clamp_max", "clip"))
def _clamp(ctx: RuleContext) -> None:
    low, high = ctx.argument("min"), ctx.argument("max")
    inside = not (
        ctx.has("min")
        or ctx.has("max")
        or (low is not None and low > 0)
        or (high is not None and high < 0)
    )
    pointwise(ctx, zero=inside and _carriers(ctx, ctx.tensors()[:1]))


@channel_rule(*overloads("hardtanh"))
def _hardtanh(ctx: RuleContext) -> None:
    inside = ctx.argument("min_val") <= 0 <= ctx.argument("max_val")
    pointwise(ctx, zero=inside and _carriers(ctx, ctx.tensors()[:1]))


@channel_rule(*overloads("threshold"))
def _threshold(ctx: RuleContext) -> None:
    """What does not exceed the threshold becomes a given value."""
    stays = ctx.argument("threshold") < 0 or ctx.argument("value") == 0
    pointwise(ctx, zero=stays and _carriers(ctx, ctx.tensors()[:1]))


@channel_rule(
    *overloads("clone", "detach", "alias", "_to_copy", "lift", "lift_fresh", "lift_fresh_copy")
)
def _same(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    ctx.produce(state.axes, zero=state.zero)


@channel_rule(aten.resize_.default)
def _resize(ctx: RuleContext) -> None:
    """The same memory in another size, or in the size that it has."""
    state, shape = ctx.tensor("self"), ctx.output_shape()
    sizes = ctx.call_sizes(1, "size")
    written = [ctx.expr(size) for size in sizes or ctx.argument("size")]
    if state.shape == shape:
        axes = state.axes
        for axis, expr in zip(axes, written, strict=True):
            ctx.constrain(expr, axis)
        ctx.produce(axes, zero=state.zero)
    else:
        ctx.produce([ctx.following(n, e) for n, e in zip(shape, written, strict=True)])


def leave_torch(ctx: RuleContext) -> None:
    """What becomes of entries outside of torch is not seen."""
    for state in ctx.call_tensors():
        for axis in state.axes:
            ctx.freeze(axis, "unknown", f"leaves torch by `{ctx.call.function}`")


def pointwise(ctx: RuleContext, *, zero: bool) -> None:
    """Tie all tensor arguments along the dims in which they are not broadcast."""
    operands = ctx.tensors()
    for index, shape in ctx.results():
        axes = [shared_axis(ctx, operands, len(shape) - d, n) for d, n in enumerate(shape)]
        ctx.produce(axes, index=index, zero=zero)


def shared_axis(ctx: RuleContext, operands: Sequence[TensorState], back: int, size: int) -> Axis:
    """Tie the operands ``back`` dims from the end where not broadcast; return the common axis."""
    axes = [s.axes[len(s.axes) - back] for s in operands if len(s.axes) >= back]
    axes = [axis for axis in axes if axis_size(axis) == size]
    chosen = next((axis for axis in axes if is_tracked(axis)), axes[0])
    for axis in axes:
        ctx.tie(chosen, axis)
    return chosen


def _carriers(ctx: RuleContext, operands: list[TensorState]) -> bool:
    """Whether every operand is zero for removed channels and has all channels of the result."""
    rank = len(ctx.output_shape())
    tracked_dims = {
        rank - len(s.axes) + d
        for s in ctx.tensors()
        for d, axis in enumerate(s.axes)
        if is_tracked(axis)
    }
    return all(
        state.zero
        and all(
            d >= rank - len(state.axes) and is_tracked(state.axes[d - rank + len(state.axes)])
            for d in tracked_dims
        )
        for state in operands
    )
