"""Blocks in which a summary of a map scales it: its channels, its places, its experts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing_grammar.parts import (
    Draw,
    ResponseNorm,
    activation,
    block,
    conv,
    norm,
    over_space,
    space,
)


class _Gate(nn.Module):
    """Embeds a map, so that there are channels of its own to gate."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.rank, self.c = len(shape) - 2, draw.width(2)
        self.embed = nn.Sequential(
            conv(self.rank, shape[1], self.c),
            norm(draw, self.c, self.rank),
            activation(draw, self.c),
        )


@block("map")
class SqueezeExcite(_Gate):
    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__(shape, draw)
        self.how = draw.one("linear", "conv", "expand_as", "product", "added", "softmax")
        few = draw.number(3, 6)
        self.squeeze, self.excite = nn.Linear(self.c, few), nn.Linear(few, self.c)
        self.squeeze_map = conv(self.rank, self.c, few, 1)
        self.excite_map = conv(self.rank, few, self.c, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        if self.how == "conv":
            gate = self.excite_map(F.relu(self.squeeze_map(x.mean(space(x), keepdim=True))))
            return x * F.hardsigmoid(gate)
        batch, channels = x.size()[:2]
        gate = self.excite(F.relu(self.squeeze(x.flatten(2).mean(-1)))).view(batch, channels)
        gate = over_space(gate.softmax(1) if self.how == "softmax" else gate.sigmoid(), self.rank)
        if self.how == "expand_as":
            return x * gate.expand_as(x)
        if self.how == "product":
            return torch.mul(*torch.broadcast_tensors(x, gate))
        return x + gate if self.how == "added" else x * gate


@block("map")
class CoordinateAttention(_Gate):
    """A gate per row and one per column, from one map of both side by side."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__(shape, draw)
        few = draw.number(4, 6)
        self.both = nn.Sequential(nn.Conv1d(self.c, few, 1), nn.BatchNorm1d(few), nn.Hardswish())
        self.gates = nn.ModuleList(nn.Conv1d(few, self.c, 1) for _ in range(self.rank))

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        lines = [x.mean([d for d in space(x) if d != own]) if x.ndim > 3 else x for own in space(x)]
        y = self.both(torch.cat(lines, dim=2))
        for own, (gate, part) in enumerate(
            zip(self.gates, y.split(list(x.shape[2:]), 2), strict=True)
        ):
            shape = [1] * self.rank
            shape[own] = x.shape[2 + own]
            x = x * gate(part).sigmoid().reshape(len(x), -1, *shape)
        return x


@block("map")
class SpatialGate(_Gate):
    """What channels say together scales every place."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__(shape, draw)
        self.how = draw.one("mean and max", "conv", "energy", "norm", "both")
        self.mix, self.one = conv(self.rank, 2, 1), conv(self.rank, self.c, 1, 1)
        self.local = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        if self.how == "conv":
            return x * self.one(x).sigmoid()
        if self.how == "energy":
            centred = (x - x.mean(space(x), keepdim=True)).square()
            return x * (centred / (4 * centred.mean(space(x), keepdim=True) + 1e-2) + 0.5).sigmoid()
        if self.how == "norm":
            return F.normalize(x, dim=1)
        if self.how == "both":
            x = x * over_space(self.local(x.flatten(2).mean(2)[:, None])[:, 0].sigmoid(), self.rank)
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.mix(summary).sigmoid()


@block("map")
class ConvNeXt(nn.Module):
    """Depthwise, norm, widen, global response norm, narrow, scale, shortcut."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, c, wide = len(shape) - 2, shape[1], draw.width(2, 14)
        self.depthwise, self.norm = conv(rank, c, c, groups=c), nn.LayerNorm(c, eps=1e-6)
        self.widen, self.narrow = nn.Linear(c, wide), nn.Linear(wide, c)
        self.response = ResponseNorm(wide, rank) if draw.chance(0.6) else nn.Identity()
        self.scale = nn.Parameter(torch.ones(c)) if draw.chance(0.5) else None

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.depthwise(x).movedim(1, -1))
        y = F.gelu(self.widen(y)).movedim(-1, 1)
        y = self.narrow(self.response(y).movedim(1, -1))
        if self.scale is not None:
            y = self.scale * y
        return x + y.movedim(-1, 1)


@block("map")
class DynamicConv(nn.Module):
    """A convolution whose kernel is a mixture of experts' kernels, chosen by the batch's mean."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.rank, self.out = len(shape) - 2, draw.width()
        self.how = draw.one("batch", "sample", "film")
        self.kernels = nn.Parameter(torch.ones(3, self.out, shape[1], *([3] * self.rank)))
        self.route, self.film = nn.Linear(shape[1], 3), nn.Linear(shape[1], 2 * self.out)
        self.plain = conv(self.rank, shape[1], self.out)

    def forward(self, x: Tensor) -> Any:
        mean = x.flatten(2).mean(2)
        function = getattr(F, f"conv{self.rank}d")
        if self.how == "film":
            scale, shift = self.film(mean).chunk(2, dim=1)
            return self.plain(x) * over_space(scale, self.rank) + over_space(shift, self.rank)
        route = self.route(mean).softmax(1)
        if self.how == "batch":
            return function(x, torch.einsum("e,e...->...", route.mean(0), self.kernels), padding=1)
        kernels = torch.einsum("be,e...->b...", route, self.kernels)
        y = function(
            x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), padding=1, groups=x.shape[0]
        )
        return y.view(x.shape[0], -1, *x.shape[2:])
