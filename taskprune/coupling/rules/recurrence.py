"""Sequences of unequal lengths, packed for recurrent layers."""

from __future__ import annotations

import torch

from taskprune.coupling.axes import untracked
from taskprune.coupling.context import RuleContext
from taskprune.coupling.registry import channel_rule

aten = torch.ops.aten

_PACKED = "sequences are packed along this dim"


@channel_rule(aten._pack_padded_sequence.default)
def _pack(ctx: RuleContext) -> None:
    """``[batch, time, *rest]``, or time first, becomes ``[steps of all sequences, *rest]``."""
    state = ctx.tensor("input")
    for axis in state.axes[:2]:
        ctx.freeze(axis, "structure", _PACKED)
    ctx.produce([untracked(ctx.output_shape()[0]), *state.axes[2:]], zero=state.zero)
    ctx.produce_fixed()
