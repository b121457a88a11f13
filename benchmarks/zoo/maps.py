"""Convolutional nets: how channels are tied by layers and layouts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import conv, net


@net(8 + 8)
class Residual(nn.Module):
    """A sum ties the channels of its terms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = conv(3, 8), conv(8, 8), conv(8, 8)
        self.norm, self.head = nn.BatchNorm2d(8), conv(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.head(F.relu(x + self.norm(self.outer(F.relu(self.inner(x))))))


@net(6 + 5 + 4)
class DenseBlock(nn.Module):
    """Concatenations put channels at odd offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 6), conv(6, 5), conv(11, 4)
        self.norm, self.head = nn.BatchNorm2d(15), conv(15, 2)

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        b = self.b(a)
        c = self.c(torch.cat([a, b], 1))
        return self.head(F.relu(self.norm(torch.cat([a, b, c], 1))))


@net(8 + 6 + 5 + 4, tasks={"box": ("box",), "lane": ("lane",), "area": ("area",)})
class ThreeHeads(nn.Module):
    """One trunk, three tasks: the trunk is shared, each head private."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = conv(3, 8)
        self.box, self.lane, self.area = (
            nn.Sequential(conv(8, n), nn.ReLU(), conv(n, 2)) for n in (6, 5, 4)
        )

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.trunk(x))
        return {"box": self.box(x), "lane": self.lane(x), "area": self.area(x)}


@net(6)
class ReusedModule(nn.Module):
    """One convolution runs at two scales and on its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = conv(3, 6), conv(6, 6), conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return (
            self.head(self.shared(self.shared(x))),
            self.head(self.shared(F.avg_pool2d(x, 2))),
        )


@net(8 + 12)
class Depthwise(nn.Module):
    """``groups`` of a depthwise convolution must follow; so must its multiplier."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth, self.point = conv(3, 8), conv(8, 8, groups=8), conv(8, 12, 1)
        self.multiply, self.head = conv(12, 24, groups=12), conv(24, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.multiply(self.point(F.relu(self.depth(self.expand(x))))))


@net(4 + 3)
class Grouped(nn.Module):
    """All groups of a grouped convolution keep the same positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 6, groups=2), conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


@net(6)
class PairedGate(nn.Module):
    """A grouped convolution over stacked pairs: each group, one pair, goes as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.alpha = conv(3, 6), conv(3, 6), conv(12, 6, 1, groups=6)
        self.head = conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        gate = self.alpha(torch.stack([a, b], 2).flatten(1, 2)).sigmoid()
        return self.head(a + gate * (b - a))


@net(4)
class ChannelShuffle(nn.Module):
    """A shuffle with two groups: pairs of channels go together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return self.b(x.view(batch, channels, height, width))


@net(5)
class FlattenedMap(nn.Module):
    """Flattening turns a channel into one column per position."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 5), nn.Linear(5 * 16, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.flatten(F.max_pool2d(self.a(x), 2), 1))


@net(5)
class FlattenedChannelsLast(nn.Module):
    """Channels last before flattening: the columns of a channel lie far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 5), nn.Linear(5 * 64, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.a(x).permute(0, 2, 3, 1).flatten(1))


@net(5 + 4)
class FlattenedScales(nn.Module):
    """Two maps of different sizes, flattened and concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 5), conv(5, 4), nn.Linear(5 * 64 + 4 * 16, 2)

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        b = F.max_pool2d(self.b(a), 2)
        return self.head(torch.cat([a.flatten(1), b.flatten(1)], 1))


@net(3 + 2)
class PixelShuffles(nn.Module):
    """Channels become space in blocks of four, and space becomes channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 12), conv(3, 2), conv(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.b(F.pixel_shuffle(self.a(x), 2))
        return self.head(F.pixel_unshuffle(x, 2))


@net(6)
class FlippedChannels(nn.Module):
    """Reversed channels are the same channels in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(3, 6), conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.a(x) + self.b(x).flip(1))


@net(4, frozen=("structure",))
class RolledChannels(nn.Module):
    """A roll shifts by a number of positions: its channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.a(x).roll(1, 1)))


@net(4, frozen=("structure",))
class RunningTotal(nn.Module):
    """A running total over channels depends on their order: they stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.a(x).cumsum(1)))


@net(8 + 3)
class SqueezeExcite(nn.Module):
    """A gate multiplies what it was computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.squeeze, self.excite = conv(3, 8), nn.Linear(8, 3), nn.Linear(3, 8)
        self.head = conv(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return self.head(x * gate[:, :, None, None])


@net(4 + 6)
class GroupNorms(nn.Module):
    """Groups stay equally large; with one channel a group, their number follows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = conv(3, 8), nn.GroupNorm(2, 8)
        self.b, self.norm_b = conv(8, 6), nn.GroupNorm(6, 6)
        self.head = conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = F.silu(self.norm_a(self.a(x)))
        return self.head(F.silu(self.norm_b(self.b(x))))


@net(6 + 5)
class InstanceNorms(nn.Module):
    """Instance norm folds channels into the batch, with and without an affine part."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = conv(3, 6), nn.InstanceNorm2d(6, affine=True)
        self.b, self.norm_b = conv(6, 5), nn.InstanceNorm2d(5)
        self.head = conv(5, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))


@net(6)
class PlainBatchNorm(nn.Module):
    """Batch norm without scale and shift still owns statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.head = conv(3, 6), nn.BatchNorm2d(6, affine=False), conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.norm(self.a(x)).sigmoid())


@net(6 + 5)
class Pyramid(nn.Module):
    """Maps of several scales, resized to the size of another map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 6), conv(6, 5, stride=2)
        self.lateral, self.head = conv(6, 5, 1), conv(5, 2)

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        b = self.b(a)
        up = F.interpolate(b, size=a.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(self.lateral(a) + up), self.head(b)


@net(6 + 4 + 3)
class Transposed(nn.Module):
    """Transposed convolutions: plain, grouped and depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 6)
        self.plain = nn.ConvTranspose2d(6, 8, 2, 2)
        self.grouped = nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
        self.head = conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.grouped(F.relu(self.plain(F.relu(self.a(x))))))


@net(6)
class DepthwiseTransposed(nn.Module):
    """A depthwise transposed convolution goes group by group."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up = conv(3, 6), nn.ConvTranspose2d(6, 12, 2, 2, groups=6)
        self.head = conv(12, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.up(self.a(x)))


@net(4 + 4)
class SharedUpsampler(nn.Module):
    """One transposed convolution, applied three times to its own output, tasks in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList(conv(3, 4, 1) for _ in range(3))
        self.weights = nn.Parameter(torch.zeros(2, 3))
        self.up, self.refine, self.head = nn.ConvTranspose2d(4, 4, 2, 2), conv(4, 4), conv(4, 1, 1)

    def forward(self, x: Tensor) -> Any:
        stack = torch.stack([p(x) for p in self.projections], 1)
        weights = self.weights.softmax(1)
        mixed = (weights[None, :, :, None, None, None] * stack[:, None]).sum(2)
        batch, n_tasks = mixed.shape[:2]
        x = mixed.flatten(0, 1)
        for _ in range(3):
            x = F.relu(self.up(x))
        x = self.head(F.relu(self.refine(x)))
        return x.view(batch, n_tasks, *x.shape[-2:])


@net(2 + 6)
class RadixSplit(nn.Module):
    """The groups of a convolution are weighed against each other: it is their width that shrinks.

    That there are two of them is a number of its own, but neither can go without the other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.radix = 2
        self.stem, self.parts = conv(3, 4), conv(4, 12, groups=2)
        self.gate, self.head = conv(6, 12, 1), conv(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.parts(self.stem(x)).sigmoid()
        batch, width, high, wide = x.shape
        x = x.reshape(batch, self.radix, width // self.radix, high, wide)
        gate = self.gate(x.sum(1).mean((2, 3), keepdim=True))
        gate = gate.view(batch, 1, self.radix, -1).transpose(1, 2).softmax(1)
        gate = gate.reshape(batch, -1).reshape(batch, self.radix, width // self.radix, 1, 1)
        return self.head((x * gate).sum(1))
