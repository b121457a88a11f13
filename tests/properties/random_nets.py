"""Random architectures as data: a list of layers that hypothesis can shrink, and what it builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import random_tokens  # noqa: F401 - registers its blocks
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from random_blocks import BLOCKS, conv
from torch import Tensor, nn

SIZE = 8
"""Height and width of the input."""

HEADS = ("map", "pooled", "flat", "tokens", "two scales", "pyramid")


@dataclass(frozen=True)
class Layer:
    """One block, and how its result meets an earlier one (``""``: not at all)."""

    kind: str
    how: str
    width: int = 1
    join: str = ""
    back: int = 0


@dataclass(frozen=True)
class Net:
    """A whole net: layers one after the other, then one head a task."""

    layers: tuple[Layer, ...]
    heads: tuple[str, ...] = ("map",)
    outputs: str = "dict"


def _layers() -> st.SearchStrategy[Layer]:
    spelled = [(kind, how) for kind, (_, spellings) in BLOCKS.items() for how in spellings]
    return st.builds(
        lambda block, width, join, back: Layer(block[0], block[1], width, join, back),
        st.sampled_from(spelled),
        st.integers(1, 3),
        st.sampled_from(["", "", "add", "cat", "multiply"]),
        st.integers(0, 2),
    )


def nets(max_layers: int = 4) -> st.SearchStrategy[Net]:
    """Return a strategy of nets."""
    return st.builds(
        Net,
        st.lists(_layers(), min_size=1, max_size=max_layers).map(tuple),
        st.lists(st.sampled_from(HEADS), min_size=1, max_size=3).map(tuple),
        st.sampled_from(["dict", "tuple", "nested"]),
    )


class Head(nn.Module):
    """One task's output of a map."""

    def __init__(self, shape: torch.Size, how: str) -> None:
        super().__init__()
        self.how = how
        _, channels, height, width = shape
        self.inner, self.norm = conv(channels, 4), nn.BatchNorm2d(4)
        self.outer = conv(4, 2)
        self.pooled, self.flat = nn.Linear(4, 2), nn.Linear(4 * height * width, 2)
        self.scales = nn.Linear(4 * height * width + 4, 2)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.norm(self.inner(x)))
        if self.how == "pooled":
            return self.pooled(F.adaptive_avg_pool2d(x, 1).flatten(1))
        if self.how == "flat":
            return self.flat(x.reshape(x.shape[0], -1))
        if self.how == "tokens":
            return self.pooled(x.flatten(2).permute(0, 2, 1))
        if self.how == "two scales":
            return self.scales(torch.cat([x.flatten(1), x.mean((2, 3))], 1))
        if self.how == "pyramid":
            return [self.outer(x), self.outer(F.avg_pool2d(x, 2, ceil_mode=True))]
        return self.outer(x)


class RandomNet(nn.Module):
    """What a :class:`Net` describes."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.stem = conv(3, 4)
        self.blocks, self.joins = nn.ModuleList(), nn.ModuleList()
        maps = [self.stem(torch.zeros(2, 3, SIZE, SIZE))]
        for layer in net.layers:
            x, made = maps[-1], BLOCKS[layer.kind][0](maps[-1].shape[1], layer.width, layer.how)
            made.eval()
            self.blocks.append(made)
            y, earlier = made(x), maps[_back(layer, len(maps))]
            fits = layer.join in ("", "cat") or earlier.shape[1] == y.shape[1]
            self.joins.append(nn.Identity() if fits else conv(earlier.shape[1], y.shape[1], 1))
            maps.append(self._join(layer, len(maps) - 1, y, earlier))
        self.heads = nn.ModuleList(Head(maps[-1].shape, how) for how in net.heads)

    def _join(self, layer: Layer, number: int, y: Tensor, earlier: Tensor) -> Tensor:
        if not layer.join:
            return y
        earlier = self.joins[number](earlier)
        if earlier.shape[2] != y.shape[2]:
            earlier = F.interpolate(earlier, size=y.shape[2:])
        if layer.join == "cat":
            return torch.cat([earlier, y], 1)
        return y + earlier if layer.join == "add" else y * earlier

    def forward(self, x: Tensor) -> Any:
        maps = [self.stem(x)]
        for number, (layer, module) in enumerate(zip(self.net.layers, self.blocks, strict=True)):
            y = module(maps[-1])
            maps.append(self._join(layer, number, y, maps[_back(layer, len(maps))]))
        results = [head(maps[-1]) for head in self.heads]
        if self.net.outputs == "tuple":
            return tuple(results)
        named = {f"task{n}": result for n, result in enumerate(results)}
        return named if self.net.outputs == "dict" else {"tasks": named, "features": maps[0].mean()}


def _back(layer: Layer, n_maps: int) -> int:
    return max(0, n_maps - 1 - layer.back)


def build(net: Net) -> nn.Module:
    """Build a net; the same one for the same data."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return RandomNet(net).double().eval()
