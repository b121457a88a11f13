"""Whole nets from a seed: inputs, layers, joins, heads, and what holds the outputs."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fuzzing_grammar.parts import BLOCKS, Draw, conv, norm, resized

SIZES = {1: (12,), 2: (8, 8), 3: (4, 4, 4)}
"""Space of the maps that nets read, by rank."""


@dataclass
class Answer:
    """Outputs as an object."""

    first: Any
    rest: Any
    note: str = "constant"


Pair = namedtuple("Pair", ["first", "rest"])

CONTAINERS = ("tensor", "tuple", "list", "dict", "nested", "dataclass", "named", "features")


class Head(nn.Module):
    """One output of a map or of tokens."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.is_map, rank = True, len(shape) - 2
        self.how = draw.one("map", "pooled", "flat", "tokens", "anchors", "pyramid", "argmax")
        inner = draw.width()
        self.inner = nn.Sequential(conv(rank, shape[1], inner), norm(draw, inner, rank), nn.ReLU())
        n_places = shape[2:].numel()
        self.outer, self.boxes = conv(rank, inner, 2, 1), conv(rank, inner, 6, 1)
        self.pooled, self.flat = nn.Linear(inner, 3), nn.Linear(inner * n_places, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.inner(x)
        if self.how == "pooled":
            return self.pooled(x.flatten(2).mean(2))
        if self.how == "flat":
            return self.flat(x.reshape(x.shape[0], -1))
        if self.how == "tokens":
            return self.pooled(x.flatten(2).permute(0, 2, 1))
        if self.how == "anchors":
            y = self.boxes(x)
            return y.view(y.shape[0], 2, 3, -1).permute(0, 1, 3, 2).contiguous().sigmoid()
        if self.how == "pyramid":
            half = [max(1, n // 2) for n in x.shape[2:]]
            return [self.outer(x), self.outer(F.interpolate(x, size=half))]
        y = self.outer(x)
        return {"scores": y, "best": y.argmax(1)} if self.how == "argmax" else y


class TokenHead(nn.Module):
    """One output of tokens."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.how = draw.one("mean", "first", "flat", "every", "tied")
        inner = draw.width()
        self.inner, self.norm = nn.Linear(shape[2], inner), nn.LayerNorm(inner)
        self.outer, self.flat = nn.Linear(inner, 3), nn.Linear(inner * shape[1], 3)

    def forward(self, x: Tensor) -> Any:
        x = F.gelu(self.norm(self.inner(x)))
        if self.how == "flat":
            return self.flat(x.flatten(1))
        if self.how == "tied":
            return x @ self.outer.weight.t()
        if self.how == "every":
            return self.outer(x)
        return self.outer(x[:, 0] if self.how == "first" else x.mean(1))


@dataclass(frozen=True)
class Join:
    """How a layer's result meets an earlier one."""

    how: str
    back: int


class FuzzedNet(nn.Module):
    """A net that follows from a seed.

    Attributes:
        kinds: The blocks it is made of, in order.
        example: Its inputs, float32: ``(tensor,)``, or two tensors.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = Draw(seed)
        generator = torch.Generator().manual_seed(seed)
        batch, rank = draw.one(2, 2, 3), draw.one(1, 2, 2, 2, 2, 3)
        domain = draw.one("map", "map", "map", "tokens")
        self.kinds: list[str] = []
        if domain == "map":
            shape: tuple[int, ...] = (batch, 3, *SIZES[rank])
            self.stem: nn.Module = conv(rank, 3, draw.width())
        else:
            shape = (batch, draw.number(4, 6), 5)
            self.stem = nn.Linear(5, draw.width(2))
        self.two_inputs = draw.chance(0.2)
        self.second = self.stem if draw.chance(0.3) else _like(self.stem)
        self.fuse = draw.one("cat", "sum", "product")
        n_inputs = 2 if self.two_inputs else 1
        self.example = tuple(torch.randn(shape, generator=generator) for _ in range(n_inputs))
        self.layers, self.matches = nn.ModuleList(), nn.ModuleList()
        self.joins: list[Join] = []
        self.container = draw.one(*CONTAINERS)
        self._grow(draw)

    def _grow(self, draw: Draw) -> None:
        maps = [self._entry(self.example)]
        for _ in range(draw.number(1, 3)):
            x = maps[-1]
            domain = self._domain()
            if domain == "map" and draw.chance(0.12):
                layer: nn.Module = AsTokens()
            elif domain == "tokens" and draw.chance(0.08):
                layer = AsMap()
            else:
                name = draw.one(*BLOCKS[domain])
                layer = BLOCKS[domain][name](x.shape, draw)
            layer.eval()
            self.kinds.append(type(layer).__name__)
            self.layers.append(layer)
            y = layer(x)
            join = Join(draw.one("", "", "", "add", "cat", "multiply"), draw.number(1, 3))
            earlier = maps[max(0, len(maps) - join.back)]
            if y.ndim != earlier.ndim or self._domain() == "tokens":
                join = Join("", 0)
            needs = join.how in ("add", "multiply") and earlier.shape[1] != y.shape[1]
            self.matches.append(
                conv(y.ndim - 2, earlier.shape[1], y.shape[1], 1) if needs else nn.Identity()
            )
            self.joins.append(join)
            maps.append(self._joined(len(self.joins) - 1, maps, y))
        kind: Any = TokenHead if self._domain() == "tokens" else Head
        self.heads = nn.ModuleList(kind(maps[-1].shape, draw) for _ in range(draw.one(1, 1, 2, 3)))

    def _domain(self) -> str:
        switches = {"AsTokens": "tokens", "AsMap": "map"}
        start = "tokens" if isinstance(self.stem, nn.Linear) else "map"
        return next((switches[kind] for kind in reversed(self.kinds) if kind in switches), start)

    def _entry(self, inputs: tuple[Tensor, ...]) -> Tensor:
        x: Tensor = self.stem(inputs[0])
        if len(inputs) == 1:
            return x
        y = self.second(inputs[1])
        if self.fuse == "cat":
            return torch.cat([x, y], -1 if isinstance(self.stem, nn.Linear) else 1)
        return x + y if self.fuse == "sum" else x * y.sigmoid()

    def _joined(self, number: int, maps: list[Tensor], y: Tensor) -> Tensor:
        join = self.joins[number]
        if not join.how:
            return y
        earlier = resized(self.matches[number](maps[max(0, len(maps) - join.back)]), y)
        if join.how == "cat":
            return torch.cat([earlier, y], 1)
        return y + earlier if join.how == "add" else y * earlier

    def forward(self, *inputs: Tensor) -> Any:
        maps = [self._entry(inputs)]
        for number, layer in enumerate(self.layers):
            maps.append(self._joined(number, maps, layer(maps[-1])))
        first, *rest = (head(maps[-1]) for head in self.heads)
        if self.container == "tensor" and not rest:
            return first
        if self.container in ("tensor", "tuple"):
            return (first, *rest)
        if self.container == "list":
            return [first, *rest]
        if self.container == "dataclass":
            return Answer(first, rest)
        if self.container == "named":
            return Pair(first, tuple(rest))
        named = {"first": first, **{f"task{n}": one for n, one in enumerate(rest)}}
        if self.container == "features":
            return {**named, "features": maps[0].mean()}
        return named if self.container == "dict" else {"tasks": named, "n": len(rest)}


class AsTokens(nn.Module):
    """A map as tokens, one a place."""

    def forward(self, x: Tensor) -> Any:
        return x.flatten(2).transpose(1, 2)


class AsMap(nn.Module):
    """Tokens as a map with one dim of space."""

    def forward(self, x: Tensor) -> Any:
        return x.permute(0, 2, 1)


def _like(layer: nn.Module) -> nn.Module:
    again: Any = layer
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features)
    return conv(again.weight.ndim - 2, again.in_channels, again.out_channels)


class _Reading(TorchFunctionMode):
    """Notes which tensors functions are called with."""

    def __init__(self) -> None:
        self.ids: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.ids |= {
            id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)
        }
        return func(*args, **(kwargs or {}))


def _without_unread(net: FuzzedNet) -> None:
    """Take out the layers and parameters that the drawn spellings do not run."""
    with _Reading() as reading:
        net(*net.example)
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            tensors = [*child.parameters(), *child.buffers()]
            if tensors and not any(id(tensor) in reading.ids for tensor in tensors):
                delattr(module, name)
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            is_ours = type(module).__module__.startswith("fuzzing_grammar")
            if is_ours and id(parameter) not in reading.ids:
                delattr(module, name)


def build(seed: int) -> FuzzedNet:
    """Return the net of a seed, in evaluation mode; the same one every time.

    One in ten has parameters that no forward reads.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net = FuzzedNet(seed).eval()
        if seed % 10:
            _without_unread(net)
        return net
