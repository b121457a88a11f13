"""Operators that make tensors out of nothing but sizes."""

from __future__ import annotations

from typing import Any

import torch

from taskprune.coupling.axes import untracked
from taskprune.coupling.context import RuleContext
from taskprune.coupling.registry import channel_rule, overloads

aten = torch.ops.aten

_FILLS = ("zeros", "ones", "full", "empty", "rand", "randn")
_NEW_FILLS = ("new_zeros", "new_ones", "new_full", "new_empty")

_DROPOUTS = ("dropout1d", "dropout2d", "dropout3d", "feature_dropout", "feature_alpha_dropout")

_FILLED_BY_TORCH = {
    "pad": 0,
    "pad_sequence": 2,
    "_pad_packed_sequence": 2,
    **{f"fractional_max_pool{n}d{form}": 0 for n in (2, 3) for form in ("", "_with_indices")},
    **{form: 0 for name in _DROPOUTS for form in (name, f"{name}_")},
}
"""Functions that make a tensor as large as their operands, which it meets, from this dim on."""


@channel_rule(
    *(aten.empty.memory_format, aten.zeros.default, aten.ones.default, aten.full.default),
    *(aten.rand.default, aten.randn.default, aten.empty_strided.default),
    *(*overloads(*_NEW_FILLS, "new_empty_strided", "randint"), aten.normal.float_float),
)
def _fill(ctx: RuleContext) -> None:
    """All entries alike: such a tensor can be made in any size."""
    shape = ctx.output_shape()
    function = ctx.call.function
    sizes: tuple[Any, ...] | None = None
    if function in _FILLS:
        sizes = ctx.call_sizes(0, "size")
    elif function in _NEW_FILLS:
        sizes = ctx.call_sizes(1, "size")
    elif function == "normal":
        sizes = ctx.call_sizes(2, "size")
    if function in _FILLED_BY_TORCH:
        first = _FILLED_BY_TORCH[function]
        axes = [ctx.following(n, None) if d >= first else untracked(n) for d, n in enumerate(shape)]
    elif sizes is None or len(sizes) != len(shape):
        axes = [untracked(n) for n in shape]
    else:
        axes = [ctx.following(n, ctx.expr(s, n)) for n, s in zip(shape, sizes, strict=True)]
    ctx.produce(axes, zero="zeros" in ctx.operation.target, weight=False)


@channel_rule(
    *overloads(
        "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
        "randint_like",
    )
)  # fmt: skip
def _like(ctx: RuleContext) -> None:
    ctx.produce(ctx.axes("self"), zero="zeros" in ctx.operation.target, weight=False)


@channel_rule(
    *overloads(
        "arange", "linspace", "logspace", "eye", "scalar_tensor", "randperm", "tril_indices",
        "triu_indices", "hann_window", "_efficientzerotensor",
    )
)  # fmt: skip
def _sequence(ctx: RuleContext) -> None:
    """The entries depend on their positions, hence on the size."""
    ctx.produce_fixed()
