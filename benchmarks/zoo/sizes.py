"""Nets whose code cuts, picks, scales and fills channels by sizes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from zoo.case import conv, image, net


@net(4 + 3)
class ChunkedHalves(nn.Module):
    """Halves made by number stay equally long, also where just one is used."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(4, 6), conv(3, 2)

    def forward(self, x: Tensor) -> Any:
        left, right = self.a(x).chunk(2, 1)
        first, _ = self.b(left * right.sigmoid()).chunk(2, dim=1)
        return self.head(first)


@net(8 + 5)
class SplitByAttributes(nn.Module):
    """Sizes that a module stores are stored anew; pieces of their own sizes shrink alone."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [3, 5]
        self.width = 5
        self.a, self.left, self.right = conv(3, 8), conv(3, 5), conv(5, 5)
        self.head = conv(5, 2)

    def forward(self, x: Tensor) -> Any:
        left, right = torch.split(self.a(x), self.sizes, dim=1)
        x = self.left(left) + self.right(right)
        return self.head(x[:, : self.width])


@net(4)
class SplitByDividedAttribute(nn.Module):
    """Both pieces have the size ``width // parts``: they shrink alike, and ``width`` follows."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.parts = 8, 2
        self.a, self.head = conv(3, 8), conv(8, 2)

    def forward(self, x: Tensor) -> Any:
        left, right = self.a(x).split(self.width // self.parts, dim=1)
        return self.head(torch.cat([right, left], 1))


@net(4, frozen=("literal",))
class SplitByNumbers(nn.Module):
    """Sizes that the code spells out stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 12), conv(4, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        first, second, _ = self.a(x).split([4, 2, 6], 1)
        return self.head(self.b(first)) * second.mean()


@net(5 + 4, frozen=("literal",))
class SlicedByNumber(nn.Module):
    """Only the channels in front of a spelled-out bound stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.head(self.b(torch.cat([x[:, 3:], x[:, :3]], 1)))


@net(4)
class SlicedInHalf(nn.Module):
    """``C // 2`` read off the shape: the halves shrink alike."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 8), conv(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        half = x.shape[1] // 2
        return self.head(torch.cat([x[:, half:].tanh(), x[:, :half]], 1))


@net(4, frozen=("structure",))
class IndexedChannels(nn.Module):
    """Channels picked by a table stay; the table is no parameter."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), conv(4, 2)
        self.register_buffer("order", torch.tensor([5, 3, 1, 0, 2, 4]))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.a(x)[:, self.order]))


@net(6 + 4)
class SpatialAttention(nn.Module):
    """A mean and a maximum across channels make a gate; both are statistics across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.b, self.head = conv(3, 6), conv(2, 1), conv(6, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.head(self.b(x * self.gate(summary).sigmoid()))


@net(6 + 4)
class LargestChannel(nn.Module):
    """``max`` over channels also returns which it was, by a number that pruning changes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        largest, _ = x.max(1, keepdim=True)
        return self.head(self.b(x - largest))


@net(5)
class PaddedShortcut(nn.Module):
    """A shortcut without weights: strided in space, zeros appended to the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 5), conv(5, 8, stride=2), conv(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 3))
        return self.head(self.b(x) + shortcut)


@net(6)
class WeightNorm(nn.Module):
    """The weight is computed from two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(conv(3, 6))
        self.head = conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.a(x)))


@net(6 + 4)
class StandardisedWeights(nn.Module):
    """A weight normed over its inputs: a statistic across the channels that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        rows = self.b.weight.reshape(1, self.b.weight.shape[0], -1)
        weight = F.batch_norm(rows, None, None, training=True).reshape_as(self.b.weight)
        return self.head(F.conv2d(F.relu(self.a(x)), weight, self.b.bias, padding=1))


@net(6 + 5)
class ScaledLayers(nn.Module):
    """Parameters used directly: a scale per channel, a shift, and slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 5), conv(5, 2)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, 5, 1, 1))
        self.slope, self.slopes = nn.PReLU(), nn.PReLU(5)

    def forward(self, x: Tensor) -> Any:
        x = self.slope(self.a(x) * self.scale)
        return self.head(self.slopes(self.b(x) + self.shift))


@net(6 + 4, lambda: torch.randn(2, 3, 16, dtype=torch.float64))
class OneDimensional(nn.Module):
    """Convolutions over sequences, gated in halves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 6, 3), nn.Conv1d(6, 8, 3, dilation=2)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Conv1d(4, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.glu(self.b(F.max_pool1d(self.norm(self.a(x)), 2)), dim=1))


@net(4 + 5, lambda: torch.randn(2, 3, 4, 6, 6, dtype=torch.float64))
class ThreeDimensional(nn.Module):
    """Convolutions over volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.b, self.head = nn.Conv3d(4, 5, 3, padding=1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.b(F.max_pool3d(self.norm(self.a(x)), 2))
        return self.head(F.adaptive_avg_pool3d(x, 1).flatten(1))


@net(6, image(batch=6))
class BatchAsLargeAsWidth(nn.Module):
    """A batch of as many images as there are channels: the batch is no channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).mean((2, 3))
        return self.head(x.reshape(x.shape[0], -1))


@net(6 + 4)
class WrittenInPlace(nn.Module):
    """A tensor is made in the size of two maps and filled piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(3, 4), conv(10, 2)

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        both = a.new_zeros(a.shape[0], a.shape[1] + b.shape[1], *a.shape[2:])
        both[:, : a.shape[1]] = a
        both[:, a.shape[1] :] = b
        return self.head(both)


@net(4 + 4, frozen=("attribute",))
class FloatBeforeSize(nn.Module):
    """A float on the left of a size never asks it: the source tells that the width matters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 8), conv(8, 4), conv(4, 6), conv(6, 4)
        self.head = conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        y = self.c(self.b(a * (1.0 / a.shape[1])))
        width = y.size(1)
        scale = 0.5 * width
        return self.head(self.d(torch.mul(y, scale)))


@net(4, frozen=("attribute",))
class BranchOnSize(nn.Module):
    """Which way the code goes depends on the width, in spellings that hold and that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 6), conv(6, 6), conv(6, 6), conv(6, 4)
        self.head = conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        x = x if x.shape[1] < 5 else 2 * x
        x = self.b(x)
        x = x if x.shape[1] == 5 else 2 * x
        x = self.c(x)
        x = self.d(x * min(x.shape[1], 4))
        return self.head(x * 2 if x.shape[1] > 0 else x)


@net(3 + 2)
class ShiftedSize(nn.Module):
    """``C >> 1`` is half of it; so is what ``divmod`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(3, 4), conv(2, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.b(self.a(x)[:, : self.a(x).shape[1] >> 1])
        return self.head(x[:, : divmod(x.shape[1], 2)[0]] * x[:, divmod(x.shape[1], 2)[0] :])


@net(4, frozen=("attribute",))
class LayerTellsItsSize(nn.Module):
    """A standard layer tells its width: pruning changes what it says, so it stays."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(6, 5), conv(5, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x) / self.a.out_channels
        x = self.b(x) / len(self.b.weight)
        return self.head(self.c(x).unflatten(1, (self.c.out_channels, 1)).flatten(1, 2))


@net(6 + 4, frozen=("structure",))
class ConvolvedAcrossChannels(nn.Module):
    """A convolution slides over channels as if they were space: they stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(3, 6), conv(6, 4), conv(4, 2)
        self.local = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        gate = self.local(self.a(x).mean((2, 3)).unsqueeze(1)).mean((1, 2))
        return self.head(self.c(self.b(x) * gate[:, None, None, None]))


@net(6 + 2 + 4)
class FunctionalNorms(nn.Module):
    """Norms without parameters, called as functions: statistics that no mask knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(6, 6), conv(6, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        x = self.b(F.layer_norm(x, x.shape[1:]))
        return self.head(self.c(F.group_norm(x, 3)))


class _Shift(nn.Module):
    """Some channels come from the step before, as many from the one behind, the rest stays."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, width), conv(width, 5), conv(5, 2)

    def fold(self, channels: int) -> int:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        x = x.view(-1, 2, *x.shape[1:])
        fold = self.fold(x.shape[2])
        y = torch.zeros_like(x)
        y[:, :-1, :fold] = x[:, 1:, :fold]
        y[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        y[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return self.head(self.b(y.flatten(0, 1)))


@net(3 + 5, image(batch=4))
class ShiftedByDivisor(_Shift):
    """``C // div`` with a stored divisor: all ``div`` parts of the channels shrink alike."""

    def __init__(self) -> None:
        super().__init__(12)
        self.div = 4

    def fold(self, channels: int) -> int:
        return channels // self.div


@net(3 + 7 + 5, image(batch=4))
class ShiftedByNumber(_Shift):
    """A stored number and twice that: both blocks keep as many, and the rest is free."""

    def __init__(self) -> None:
        super().__init__(13)
        self.shifted = 3

    def fold(self, _: int) -> int:
        return self.shifted


@net(5, image(batch=4), frozen=("attribute",))
class ShiftedWithRemainder(_Shift):
    """Channels of which a part is left over by the division stay."""

    def __init__(self) -> None:
        super().__init__(13)

    def fold(self, channels: int) -> int:
        return channels // 4
