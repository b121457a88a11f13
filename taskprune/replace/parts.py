"""Parameters cut out of others."""

from __future__ import annotations

from torch import Tensor, nn


def part_of(parameter: Tensor, rows: slice = slice(None)) -> nn.Parameter:
    """Return some rows of a parameter as one of their own, in its memory; the gradient likewise."""
    part = nn.Parameter(parameter.detach()[rows], requires_grad=parameter.requires_grad)
    if parameter.grad is not None:
        part.grad = parameter.grad.detach()[rows]
    return part
