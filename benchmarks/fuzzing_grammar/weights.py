"""Weights that are computed, normalised, shared or tied; modules run by means of their own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from fuzzing_grammar.parts import Draw, activation, block, conv, norm, resized, upconv


class Scaled(nn.Module):
    """A parametrisation of the user's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5


class Clipped(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.clamp(-0.4, 0.4)


@block("map")
class Reparametrised(nn.Module):
    """Weight norm, spectral norm, orthogonal, standardised, and the user's own."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, width = len(shape) - 2, draw.width()
        self.how = draw.one(
            "weight", "weight", "whole", "spectral", "own", "chain", "standardised", "functional"
        )
        self.rank, self.first = rank, conv(rank, shape[1], width)
        self.second = conv(rank, width, width + 1)
        self.between = nn.Sequential(norm(draw, width, rank), activation(draw, width))
        self.gain = nn.Parameter(torch.ones(width, *([1] * (rank + 1))))
        for layer in (self.first, self.second):
            if self.how in ("weight", "whole"):
                dim: Any = 0 if self.how == "weight" else None  # of all entries
                parametrizations.weight_norm(layer, dim=dim)
            elif self.how == "spectral":
                parametrizations.spectral_norm(layer)
            elif self.how in ("own", "chain"):
                parametrize.register_parametrization(layer, "weight", Scaled())
                if self.how == "chain":
                    parametrize.register_parametrization(layer, "weight", Clipped())

    def forward(self, x: Tensor) -> Any:
        function = getattr(F, f"conv{self.rank}d")
        if self.how in ("standardised", "functional"):
            weight: Any = self.first.weight
            if self.how == "standardised":
                mean = weight.flatten(1).mean(1).view(-1, *([1] * (self.rank + 1)))
                spread = weight.flatten(1).std(1).view(-1, *([1] * (self.rank + 1)))
                weight = (weight - mean) / (spread + 1e-3)
            x = function(x, weight * self.gain, self.first.bias, padding=1)
        else:
            x = self.first(x)
        return self.second(self.between(x))


@block("map")
class Shared(nn.Module):
    """Modules called several times, weights in two places."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, w = len(shape) - 2, draw.width()
        self.rank = rank
        self.how = draw.one(
            "twice", "scales", "branches", "tied", "autoencoder", "norm", "same list", "layers"
        )
        self.stem, self.other = conv(rank, shape[1], w), conv(rank, shape[1], w)
        self.a, self.b = conv(rank, w, w), conv(rank, w, w)
        self.act, self.norm = activation(draw, w), norm(draw, w, rank)
        if self.how == "tied":
            self.b.weight = self.a.weight
        self.chain = nn.ModuleList([self.a] * 3)

    def forward(self, x: Tensor) -> Any:
        x, y = self.stem(x), self.other(x)
        if self.how == "twice":
            return self.a(self.act(self.a(x)))
        if self.how == "scales":
            small = self.a(F.interpolate(x, size=[max(1, n // 2) for n in x.shape[2:]]))
            return self.a(x) + resized(small, x)
        if self.how == "branches":
            return torch.cat([self.a(x), self.a(y)], 1)
        if self.how == "autoencoder":
            back: Any = getattr(F, f"conv_transpose{self.rank}d")
            return back(self.act(self.a(x)), self.a.weight, padding=1)
        if self.how == "norm":
            return self.norm(self.a(x)) * self.norm(self.b(y))
        if self.how in ("same list", "layers"):
            for layer in self.chain if self.how == "same list" else (self.a, self.b, self.a):
                x = self.norm(layer(x)).tanh()
            return x
        return self.b(self.act(self.a(x) + y))


@block("map")
class Hyper(nn.Module):
    """Weights that another layer makes, and parameters of odd shapes."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, self.width = len(shape) - 2, draw.width()
        self.how = draw.one("low rank", "made", "list", "dict", "outer")
        self.rank, c = rank, shape[1]
        self.left = nn.Parameter(torch.ones(self.width, 3))
        self.right = nn.Parameter(torch.ones(3, c))
        self.code, self.make = nn.Parameter(torch.ones(4)), nn.Linear(4, self.width * c)
        self.several = nn.ParameterList([nn.Parameter(torch.ones(self.width)) for _ in range(2)])
        self.named = nn.ParameterDict({"scale": nn.Parameter(torch.ones(self.width))})
        self.plain = conv(rank, c, self.width, 1)

    def forward(self, x: Tensor) -> Any:
        ones, function = [1] * self.rank, getattr(F, f"conv{self.rank}d")
        if self.how == "low rank":
            weight = self.left @ self.right
            return function(x, weight.reshape(*weight.shape, *ones))
        if self.how == "made":
            return function(x, self.make(self.code).view(self.width, x.shape[1], *ones))
        y = self.plain(x)
        if self.how == "list":
            for scale in self.several:
                y = y * scale.view(1, -1, *ones)
            return y
        if self.how == "dict":
            return y * self.named["scale"].view(-1, *ones)
        return y + torch.outer(self.several[0], self.several[1]).diagonal().view(-1, *ones)


@block("map")
class RunOtherwise(nn.Module):
    """Modules that are checkpointed, vmapped, called with other parameters, observed, cached."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, width = len(shape) - 2, draw.width()
        self.how = draw.one(
            "checkpoint", "re-entrant", "vmap", "functional", "left", "cached", "double", "hooked"
        )
        self.inner = nn.Sequential(
            conv(rank, shape[1], width), nn.GELU(), conv(rank, width, width + 1, 1)
        )
        self.memory: dict[str, Tensor] = {}
        self.seen: Any = None
        if self.how == "hooked":
            self.inner[0].register_forward_hook(lambda _module, _inputs, y: y * 2)
            self.inner[2].register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,))

    def forward(self, x: Tensor) -> Any:
        if self.how in ("checkpoint", "re-entrant"):
            return checkpoint(self.inner, x, use_reentrant=self.how == "re-entrant")
        if self.how == "vmap":
            return torch.vmap(lambda one: self.inner(one[None])[0])(x)
        if self.how == "functional":
            changed = {name: value * 0.5 for name, value in self.inner.named_parameters()}
            return torch.func.functional_call(self.inner, changed, (x,))
        y = self.inner(x)
        if self.how == "left":
            self.seen = y.mean()
        if self.how == "cached":
            key = str(tuple(y.shape))
            if key not in self.memory:
                self.memory[key] = torch.ones(y.shape[1:], dtype=y.dtype)
            return y + self.memory[key]
        return y.double().to(x.dtype) if self.how == "double" else y


@block("map")
class Bilinear(nn.Module):
    """Products of two projections: bilinear layers, Gram matrices, factorised pooling."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, width = len(shape) - 2, draw.width()
        self.how = draw.one("layer", "functional", "gram", "factorised", "einsum", "tensordot")
        self.a, self.b = conv(rank, shape[1], width), conv(rank, shape[1], width + 1)
        self.pair = nn.Bilinear(width, width + 1, 6)
        self.same, self.out = nn.Linear(width + 1, width), nn.Linear(width, 6)
        self.mix = nn.Parameter(torch.ones(width, width + 1, 6))

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x).flatten(2).mT, self.b(x).flatten(2).mT
        if self.how == "gram":
            y = self.same(b).transpose(1, 2) @ a / a.shape[1]
            y = self.out(a @ y)
        elif self.how == "factorised":
            y = F.normalize(self.out(a * self.same(b)), dim=-1)
        elif self.how == "einsum":
            y = torch.einsum("bli,blj,ijo->blo", a, b, self.mix)
        elif self.how == "tensordot":
            y = torch.tensordot(a, self.mix, dims=1).mean(2)
        elif self.how == "functional":
            y = F.bilinear(a, b, self.pair.weight, self.pair.bias)
        else:
            y = self.pair(a, b)
        return y.mT.unflatten(2, x.shape[2:])


@block("map")
class Transposed(nn.Module):
    """Transposed convolutions with all their options."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, width = len(shape) - 2, draw.width(2)
        self.spread = nn.Sequential(conv(rank, shape[1], width), norm(draw, width, rank))
        stride = draw.one(1, 2)
        self.up = upconv(
            rank,
            width,
            draw.width(2),
            3,
            stride=stride,
            padding=1,
            output_padding=stride - 1,
            groups=draw.one(1, 1, 2),
            bias=draw.chance(0.5),
        )

    def forward(self, x: Tensor) -> Any:
        return resized(self.up(self.spread(x).relu()), x)
