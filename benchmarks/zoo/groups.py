"""Nets whose grouped convolutions cut where the channels do not."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import conv, net


@net(3 + 4 + 3 + 3)
class GroupedOverConcat(nn.Module):
    """A group takes all of one map and one channel of the next: with unequal groups both shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 3), conv(3, 5)
        self.grouped, self.head = conv(8, 6, groups=2), conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.grouped(torch.cat([self.a(x), self.b(x)], 1))))


@net(4 + 4 + 4)
class GroupedOverInput(nn.Module):
    """One group takes the model's input, which stays; the other need not stay with it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 5)
        self.grouped, self.head = conv(8, 8, groups=2), conv(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.grouped(torch.cat([x[:, :3], self.a(x)], 1))))


@net(3 + 3 + 3 + 4)
class GroupedBeforeConcat(nn.Module):
    """The sum of a grouped convolution's result and a concatenation cut elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = conv(3, 6), conv(6, 8, groups=2)
        self.a, self.b, self.head = conv(3, 3), conv(3, 5), conv(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.grouped(self.stem(x)) + torch.cat([self.a(x), self.b(x)], 1)))


@net(3 + 4 + 2 + 2, lambda: torch.randn(2, 3, 9, dtype=torch.float64))
class UpsampledConcat(nn.Module):
    """Transposed, one-dimensional, strided, told how large its result is to be."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 3, 3), nn.Conv1d(3, 5, 3)
        self.up = nn.ConvTranspose1d(8, 4, 3, 2, padding=1, groups=2)
        self.head = nn.Conv1d(4, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.up(torch.cat([self.a(x), self.b(x)], 1))
        return self.head(F.relu(x))


@net(3 + 4 + 2 + 2, lambda: torch.randn(2, 3, 3, 4, 4, dtype=torch.float64))
class VolumesConcat(nn.Module):
    """Three-dimensional, without bias, padded by reflection, run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 3, 1), nn.Conv3d(3, 5, 1)
        self.grouped = nn.Conv3d(8, 4, 3, padding=1, groups=2, bias=False, padding_mode="reflect")
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.cat([self.a(x), self.b(x)], 1)
        return self.head(self.grouped(x) + self.grouped(x.sigmoid()))


@net(3 + 3)
class GroupsReadElsewhere(nn.Module):
    """The code reads the weight itself, so that its module must stay what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 3), conv(3, 5)
        self.grouped, self.head = conv(8, 6, groups=2), conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        scale = self.grouped.weight.abs().mean()
        return self.head(self.grouped(torch.cat([self.a(x), self.b(x)], 1)) / scale)


@net(4 + 3)
class GroupsAlignedWithConcat(nn.Module):
    """Maps as wide as the groups shrink alike: the convolution stays what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 4), conv(3, 4)
        self.grouped, self.head = conv(8, 6, groups=2), conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.grouped(torch.cat([self.a(x), self.b(x)], 1)))
