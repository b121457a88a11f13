"""Random numbers that evaluation draws: which entry meets which depends on all sizes.

With fewer channels every entry meets another number, so a pruned model equals the masked one in
distribution only, which no comparison of two runs can tell from a fault. While training that is
nothing new: no two steps meet the same numbers.
"""

from __future__ import annotations

from functools import cache

import torch

from taskprune.coupling.context import RuleContext
from taskprune.coupling.registry import operator_of

aten = torch.ops.aten

_UNTAGGED = (aten.random, aten.random_)
"""Draw as well; torch tells that of all others."""


def keep_what_is_drawn(ctx: RuleContext) -> None:
    """Keep the channels of an operator that draws random numbers in evaluation."""
    operation = ctx.operation
    if operation.mode != "eval" or not _may_draw(operation.target):
        return
    # As operators are called that draw nothing after all.
    if (
        False in (ctx.argument("train"), ctx.argument("training"))
        or ctx.argument("dropout_p") == 0
        or (ctx.argument("p") == 0 and "dropout" in operation.target)
    ):
        return
    results = [ctx.analysis.state(number) for number in operation.outputs if number is not None]
    for state in (*ctx.tensors(), *results):
        for axis in state.axes:
            ctx.freeze(axis, "structure", "evaluation draws random numbers by position here")


@cache
def _may_draw(target: str) -> bool:
    operator = operator_of(target)
    return (
        torch.Tag.nondeterministic_seeded in operator.tags or operator.overloadpacket in _UNTAGGED
    )
