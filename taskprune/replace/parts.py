"""Parameters cut out of others."""

from __future__ import annotations

from torch import Tensor, nn


def part_of(parameter: Tensor, rows: slice = slice(None)) -> nn.Parameter:
    """Return a copy of some rows of a parameter and its gradient."""
    part = nn.Parameter(parameter.detach()[rows].clone(), requires_grad=parameter.requires_grad)
    if parameter.grad is not None:
        part.grad = parameter.grad.detach()[rows].clone()
    return part
