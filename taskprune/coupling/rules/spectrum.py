"""Fourier transforms, and complex numbers as pairs of real ones."""

from __future__ import annotations

import torch

from taskprune.coupling.axes import Axis, untracked
from taskprune.coupling.context import LITERAL, RuleContext
from taskprune.coupling.registry import channel_rule

aten = torch.ops.aten


@channel_rule(aten._fft_r2c.default, aten._fft_c2r.default, aten._fft_c2c.default)
def _transform(ctx: RuleContext) -> None:
    """Linear, and along the other dims every entry for itself."""
    state = ctx.tensor("self")
    axes: list[Axis] = list(state.axes)
    for d in (d % len(axes) for d in ctx.argument("dim")):
        ctx.freeze(axes[d], "structure", "is Fourier-transformed as a whole")
        axes[d] = untracked(ctx.output_shape()[d])
    ctx.produce(axes, zero=state.zero)


@channel_rule(aten.view_as_real.default, aten.view_as_real_copy.default)
def _as_pairs(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    ctx.produce([*state.axes, untracked(2, LITERAL)], zero=state.zero)


@channel_rule(aten.view_as_complex.default, aten.view_as_complex_copy.default)
def _from_pairs(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    ctx.freeze(state.axes[-1], "structure", "is read as real and imaginary parts")
    ctx.produce(state.axes[:-1], zero=state.zero)
