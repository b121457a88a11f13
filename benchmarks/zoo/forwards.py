"""Nets whose forward does more than compute."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import conv, net


@net(5, frozen=("unknown",))
class UnknownOperator(nn.Module):
    """What an operator without a rule touches stays, the rest is free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 5), conv(5, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(torch.special.bessel_j1(self.a(x))))


@net(6 + 4)
class ReadsValues(nn.Module):
    """A branch on a value: the forward must really run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        if x.mean().item() > -1e9:
            x = F.relu(x)
        return self.head(self.b(x))


@net(6 + 4)
class CachesTensors(nn.Module):
    """The forward keeps tensors in its module; the trace must not leave its own there."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}
        self.last: Tensor | None = None
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.last = self.a(x)
        if "ramp" not in self.cache:
            self.cache["ramp"] = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype, device=x.device)
        return self.head(self.b(x * self.cache["ramp"]))


@net(6 + 5 + 4)
class AuxiliaryHead(nn.Module):
    """A head that runs in training only shrinks with the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), conv(4, 2)
        self.auxiliary = nn.Sequential(conv(6, 5), nn.BatchNorm2d(5), nn.Dropout(), conv(5, 2))

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        out = self.head(self.b(x))
        return (out, self.auxiliary(x)) if self.training else out


@net(6 + 4)
class UnusedAndFrozen(nn.Module):
    """An unused layer is left alone; weights without gradients can go like any others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), conv(4, 2)
        self.unused = conv(3, 7)
        self.a.requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            x = self.a(x)
        return self.head(self.b(x))


@net(6, frozen=("structure",))
class GramMatrix(nn.Module):
    """Expanded gates; products of all pairs of channels, flattened, cannot shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.b = conv(3, 6), conv(3, 1), conv(6, 4)
        self.head = nn.Linear(4 * 4, 2)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        gate = self.gate(x).sigmoid().expand(-1, y.shape[1], -1, -1)
        y = self.b(y * gate + y.new_ones(1, y.shape[1], 1, 1)).flatten(2)
        return self.head((y @ y.transpose(1, 2)).flatten(1))
