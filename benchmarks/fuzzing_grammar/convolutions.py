"""Convolutions and how their results meet: shortcuts, concatenations, groups, scales."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing_grammar.parts import Draw, activation, block, by_rank, conv, norm, resized, upconv


@block("map")
class Conv(nn.Module):
    """A convolution of any kind, a norm and an activation, in either order."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, width = len(shape) - 2, draw.width()
        self.conv = conv(
            rank,
            shape[1],
            width,
            draw.one(1, 3, 3),
            bias=draw.chance(0.5),
            dilation=draw.one(1, 1, 2) if min(shape[2:]) > 3 else 1,
            padding_mode=draw.one("zeros", "zeros", "circular", "replicate"),
        )
        layers = [norm(draw, width, rank), activation(draw, width)]
        self.layers = nn.Sequential(*(reversed(layers) if draw.chance(0.2) else layers))

    def forward(self, x: Tensor) -> Any:
        return self.layers(self.conv(x))


@block("map")
class Residual(nn.Module):
    """A shortcut around two or three convolutions."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, c = len(shape) - 2, shape[1]
        self.how = draw.one("sum", "in place", "scaled", "projected", "before", "padded", "gated")
        width, out = draw.width(), c + 2 if self.how == "padded" else c
        self.first = nn.Sequential(conv(rank, c, width), norm(draw, width, rank))
        self.act = activation(draw, width)
        self.last = nn.Sequential(conv(rank, width, out, 1), norm(draw, out, rank))
        self.short = conv(rank, c, c, 1) if self.how == "projected" else nn.Identity()
        self.scale = nn.Parameter(torch.ones(c, *([1] * rank)))

    def forward(self, x: Tensor) -> Any:
        y = self.last(self.act(self.first(x)))
        if self.how == "in place":
            y += x
            return y
        if self.how == "padded":
            return y + F.pad(x, (0, 0) * (x.ndim - 2) + (1, 1))
        if self.how == "scaled":
            return torch.addcmul(x, y, self.scale)
        if self.how == "gated":
            return torch.lerp(x, y, self.scale.sigmoid())
        return F.relu(self.short(x) + y)


@block("map")
class Dense(nn.Module):
    """Every convolution reads all maps before it."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, growth, c = len(shape) - 2, draw.number(3, 5), shape[1]
        self.order = draw.one("first", "last", "new")
        self.layers = nn.ModuleList(
            nn.Sequential(
                norm(draw, c + n * growth, rank),
                nn.ReLU(),
                conv(rank, c + n * growth, growth),
            )
            for n in range(draw.number(1, 3))
        )

    def forward(self, x: Tensor) -> Any:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        if self.order == "new":
            out = x.new_empty(len(x), sum(m.shape[1] for m in maps), *x.shape[2:])
            start = 0
            for one in maps:
                out[:, start : start + one.shape[1]] = one
                start += one.shape[1]
            return out
        return torch.cat(maps if self.order == "first" else maps[::-1], dim=1)


@block("map")
class Branches(nn.Module):
    """Branches of several kernels and strides, merged in many ways."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, c, width = len(shape) - 2, shape[1], draw.width()
        self.how = draw.one("cat", "sum", "stack", "weighted", "largest", "selected", "hstack")
        self.maps = nn.ModuleList(
            (
                conv(rank, c, width, 1),
                nn.Sequential(conv(rank, c, width), norm(draw, width, rank), nn.ReLU()),
                nn.Sequential(
                    by_rank(draw.one("AvgPool", "MaxPool"), rank)(
                        3, stride=draw.one(1, 2), padding=1
                    ),
                    conv(rank, c, width, 1),
                ),
            )
        )
        self.weights = nn.Parameter(torch.ones(3))
        self.choose = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Any:
        maps = [resized(branch(x), x) for branch in self.maps]
        if self.how == "cat":
            return torch.cat(maps, 1)
        if self.how == "hstack":
            return torch.hstack(maps)
        if self.how == "largest":
            return torch.maximum(maps[0], torch.maximum(maps[1], maps[2]))
        if self.how == "weighted":
            shares = F.relu(self.weights) / (F.relu(self.weights).sum() + 1e-4)
            return sum(share * one for share, one in zip(shares, maps, strict=True))
        stack = torch.stack(maps, 1)
        if self.how == "stack":
            return stack.mean(1)
        if self.how == "selected":
            choice = self.choose(stack.sum(1).flatten(2).mean(2)).unflatten(1, (3, -1)).softmax(1)
            return (stack * choice.reshape(*choice.shape, *([1] * (x.ndim - 2)))).sum(1)
        return sum(maps)


@block("map")
class Grouped(nn.Module):
    """Grouped and depthwise convolutions, plain and transposed, with a multiplier, shuffled."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, width = len(shape) - 2, draw.width(4, 12)
        self.shuffle = draw.one(0, 2, 4)
        groups = draw.one(2, 4, width, width, width // 2)
        out = draw.one(width, 2 * width)
        self.spread = conv(rank, shape[1], width, 1)
        self.between = norm(draw, width, rank)
        self.grouped = (
            upconv(rank, width, out, 3, padding=1, groups=groups)
            if draw.chance(0.25)
            else conv(rank, width, out, groups=groups, bias=draw.chance(0.5))
        )
        self.act = activation(draw, out)

    def forward(self, x: Tensor) -> Any:
        y = self.act(self.grouped(self.between(self.spread(x))))
        if not self.shuffle:
            return y
        batch, channels, *size = y.shape
        y = y.reshape(batch, self.shuffle, channels // self.shuffle, *size).transpose(1, 2)
        return y.reshape(batch, channels, *size)


@block("map")
class Straddled(nn.Module):
    """Groups that begin and end inside of the maps that a grouped convolution reads."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, width = len(shape) - 2, draw.number(4, 7)
        self.a, self.b = conv(rank, shape[1], 3, 1), conv(rank, shape[1], 2 * width - 3)
        self.grouped = conv(rank, 2 * width, 2 * width, groups=2)

    def forward(self, x: Tensor) -> Any:
        return self.grouped(torch.cat([self.a(x), self.b(x).tanh()], 1))


@block("map")
class Resampled(nn.Module):
    """Down and up again: strides, pooling of all kinds, transposed convolutions, interpolation."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, c, width = len(shape) - 2, shape[1], draw.width()
        pool = draw.one(
            "stride", "AvgPool", "MaxPool", "LPPool", "AdaptiveAvgPool", "AdaptiveMaxPool"
        )
        half = tuple(max(1, n // 2) for n in shape[2:])
        if pool == "stride":
            self.down = conv(rank, c, width, stride=2)
        elif pool == "LPPool":
            self.down = nn.Sequential(
                nn.Softplus(), by_rank(pool, rank)(2, 2), conv(rank, c, width, 1)
            )
        else:
            size: Any = half if pool.startswith("Adaptive") else 2
            size = size[0] if isinstance(size, tuple) and rank == 1 else size
            self.down = nn.Sequential(by_rank(pool, rank)(size), conv(rank, c, width, 1))
        self.inner = nn.Sequential(conv(rank, width, width), norm(draw, width, rank), nn.SiLU())
        self.mode = draw.one("nearest", "smooth", "transposed", "scaled")
        self.up = upconv(rank, width, width, 2, stride=2)
        self.skip = draw.one("cat", "sum", "none")
        self.match = conv(rank, c, width, 1) if self.skip == "sum" else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        y = self.inner(self.down(x))
        if self.mode == "transposed":
            y = self.up(y)
        elif self.mode == "scaled":
            y = F.interpolate(y, scale_factor=2)
        elif self.mode == "smooth":
            smooth = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
            y = F.interpolate(y, size=x.shape[2:], mode=smooth, align_corners=False)
        y = resized(y, x)
        if self.skip == "cat":
            return torch.cat([x, y], 1)
        return y + self.match(x) if self.skip == "sum" else y


@block("map")
class Unpooled(nn.Module):
    """Maxima and where they were, as in SegNet."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, width = len(shape) - 2, draw.width()
        self.spread = nn.Sequential(conv(rank, shape[1], width), norm(draw, width, rank), nn.ReLU())
        self.pool = by_rank("MaxPool", rank)(2, 2, return_indices=True)
        self.unpool = by_rank("MaxUnpool", rank)(2, 2)
        self.inner = conv(rank, width, width) if draw.chance(0.6) else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        x = self.spread(x)
        y, where = self.pool(x)
        return self.unpool(self.inner(y), where, output_size=x.shape)


@block("map")
class Pyramid(nn.Module):
    """A small U-net or feature pyramid with one module for all scales."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, width = len(shape) - 2, draw.width()
        self.stem = conv(rank, shape[1], width)
        self.down = conv(rank, width, width + 2, stride=2)
        self.lateral = nn.ModuleList((conv(rank, width, 6, 1), conv(rank, width + 2, 6, 1)))
        self.shared = nn.Sequential(conv(rank, 6, 6), norm(draw, 6, rank), nn.ReLU())
        self.merge = draw.one("cat", "sum")

    def forward(self, x: Tensor) -> Any:
        fine = self.stem(x)
        coarse = self.lateral[1](F.relu(self.down(fine)))
        fine = self.lateral[0](fine) + resized(coarse, fine)
        fine, coarse = self.shared(fine), resized(self.shared(coarse), fine)
        return torch.cat([fine, coarse], 1) if self.merge == "cat" else fine * coarse.sigmoid()
