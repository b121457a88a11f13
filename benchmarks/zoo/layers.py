"""Nets around layers that compute their weights, unroll, or cut by numbers of their own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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


@net(6 + 4)
class Unpooled(nn.Module):
    """What is unpooled has as many channels as the map whose maxima tell the places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 6), conv(6, 2)
        self.c = conv(6, 4)
        self.last = conv(4, 2)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Any:
        x, places = self.pool(self.a(x))
        y = self.unpool(self.b(x), places)
        return self.head(y), self.last(self.c(y))


@net(4 + 5)
class FourierUnit(nn.Module):
    """A layer between two transforms along space, over real and imaginary parts side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix, self.head = conv(3, 4), conv(8, 10, 1), conv(5, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        z = torch.fft.rfft2(x, norm="ortho")
        real, imaginary = F.relu(self.mix(torch.cat([z.real, z.imag], 1))).chunk(2, 1)
        z = torch.complex(real, imaginary)
        return self.head(torch.fft.irfft2(z, s=x.shape[-2:], norm="ortho"))


@net(6 + 5 + 4, tokens())
class TwoFactors(nn.Module):
    """A bilinear layer sums over the features of both of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both = nn.Linear(6, 6), nn.Linear(6, 5), nn.Bilinear(6, 5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.both(F.relu(self.a(x)), self.b(x))))


@net(5 + 4, tokens())
class PackedSequences(nn.Module):
    """Sequences of unequal lengths go through a recurrent layer without their padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 5), nn.Linear(8, 2)
        self.memory = nn.LSTM(5, 4, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        lengths = torch.tensor([3, 5])
        packed = pack_padded_sequence(self.embed(x), lengths, True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.memory(packed)[0], batch_first=True)[0])


@net(6)
class ExpandedParameter(nn.Module):
    """A parameter is expanded to a map and put beside it: both have the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 6), conv(12, 2)
        self.query = nn.Parameter(torch.ones(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.head(torch.cat([x, self.query.expand_as(x)], 1))


class _Shuffle(nn.Module):
    """Copies know what it was made with; the rest they work out anew."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.made_with, self.sizes = {"groups": groups}, (groups, -1)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "sizes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.sizes = (state["made_with"]["groups"], -1)

    def forward(self, x: Tensor) -> Any:
        y: Any = x
        return y.unflatten(1, self.sizes).transpose(1, 2).flatten(1, 2)


@net(4 + 5)
class ReworkedInteger(nn.Module):
    """A number that every copy works out anew cannot follow; the channels in each group can."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 5), conv(5, 2)
        self.shuffle = _Shuffle(2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.shuffle(self.a(x))))
