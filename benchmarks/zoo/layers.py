"""Nets around layers that compute their weights, unroll, or cut by numbers of their own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from zoo.case import conv, net, tokens


@net(4 + 5)
class GatedHalves(nn.Module):
    """``glu`` multiplies one half by the other's sigmoid: the halves shrink alike."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(4, 5), conv(5, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(F.glu(self.a(x), 1)))


@net(4 + 3, tokens())
class FeaturesSideBySide(nn.Module):
    """Tokens of two widths, concatenated in the last of three dims."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 4), nn.Linear(6, 3), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.cat([self.a(x), self.b(x).relu()], dim=2))


@net(3, tokens(width=12))
class SpelledHeadWidth(nn.Module):
    """The code writes the width of a head as a number: heads go, each as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Any:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, -1, 4).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


@net(5 + 4, tokens())
class DeepRecurrent(nn.Module):
    """Two layers, each in both directions, store one width: it shrinks everywhere alike."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 5)
        self.memory = nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.memory(self.embed(x))[0])


@net(5 + 6 + 3, tokens())
class ProjectedRecurrent(nn.Module):
    """A projection makes what is handed on narrower than the cell."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 5)
        self.memory = nn.LSTM(5, 6, proj_size=3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.memory(self.embed(x))[0])


@net(6 + 5 + 4)
class SpectralNorm(nn.Module):
    """The weight is divided by a product with two buffers, which shrink with it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 6), parametrizations.spectral_norm(conv(6, 5))
        self.c, self.head = conv(5, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.c(self.b(self.a(x))))


@net(6 + 4, tokens())
class FunctionalWeights(nn.Module):
    """Parameters of the net itself, handed to functions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))
        self.matrix = nn.Parameter(torch.randn(6, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(F.linear(x, self.weight, self.bias))
        return self.head(torch.matmul(x, self.matrix))


@net(4 + 3)
class RepeatedChannels(nn.Module):
    """Channels repeated side by side, and each one twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 4), conv(8, 3), conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.b(self.a(x).repeat(1, 2, 1, 1))
        return self.head(x.repeat_interleave(2, dim=1))
