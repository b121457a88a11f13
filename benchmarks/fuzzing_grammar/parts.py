"""What blocks of the grammar are made of: choices by seed, layers of any rank, a registry."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

T = TypeVar("T")

BLOCKS: dict[str, dict[str, type[nn.Module]]] = {"map": {}, "tokens": {}}
"""By what they read: maps ``[batch, channels, *space]`` of rank 1 to 3 (how many dims of space), or
tokens ``[batch, length, width]``. A block is made from the shape that it will read, and a draw."""

Block = TypeVar("Block", bound=type[nn.Module])


def block(domain: str) -> Callable[[Block], Block]:
    """Register a kind of block under the name of its class."""

    def register(cls: Block) -> Block:
        BLOCKS[domain][cls.__name__] = cls
        return cls

    return register


class Draw:
    """Choices that follow from a seed alone."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self, *options: T) -> T:
        """Return one of the options."""
        return self._random.choice(options)

    def chance(self, probability: float) -> bool:
        """Return true this often."""
        return self._random.random() < probability

    def width(self, multiple: int = 1, most: int = 10) -> int:
        """Return a number of channels, at least 4."""
        return multiple * self._random.randint(-(-4 // multiple), max(most // multiple, 4))

    def number(self, low: int, high: int) -> int:
        """Return a whole number, both ends included."""
        return self._random.randint(low, high)


def conv(rank: int, inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Module:
    """Return a convolution that leaves the space as it is, unless it has a stride."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    padding = options.pop("padding", options.get("dilation", 1) * (kernel // 2))
    return kind(inputs, outputs, kernel, padding=padding, **options)


def upconv(rank: int, inputs: int, outputs: int, kernel: int, **options: Any) -> nn.Module:
    """Return a transposed convolution."""
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    return kind(inputs, outputs, kernel, **options)


def by_rank(name: str, rank: int) -> Any:
    """Return the layer or function of torch for this many dims of space."""
    return getattr(nn if name[0].isupper() else F, f"{name}{rank}d")


def space(x: Tensor) -> tuple[int, ...]:
    """Return the dims of a map that are space."""
    return tuple(range(2, x.ndim))


def over_space(x: Tensor, rank: int) -> Tensor:
    """Return a vector per sample, spread out so that it meets a map."""
    return x.reshape(*x.shape, *([1] * rank))


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Return a map in the space of another."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="nearest")


class ChannelsLast(nn.Module):
    """A layer that normalises along the last dim, on maps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x.movedim(1, -1)).movedim(-1, 1)


class HandNorm(nn.Module):
    """Layer or RMS norm over channels as people write it."""

    def __init__(self, channels: int, rank: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.ones(channels, *([1] * rank)))
        self.bias = nn.Parameter(torch.zeros(channels, *([1] * rank)))

    def forward(self, x: Tensor) -> Any:
        if self.how == "rms":
            return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5) * self.weight
        centre = x.mean(1, keepdim=True)
        spread = (x - centre).pow(2).mean(1, keepdim=True)
        return (x - centre) / torch.sqrt(spread + 1e-5) * self.weight + self.bias


class ResponseNorm(nn.Module):
    """Global response normalisation, as in ConvNeXt V2, on maps."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, channels, *([1] * rank)))
        self.beta = nn.Parameter(torch.zeros(1, channels, *([1] * rank)))

    def forward(self, x: Tensor) -> Any:
        size = torch.linalg.vector_norm(x, dim=space(x), keepdim=True)
        return x + self.gamma * x * (size / (size.mean(1, keepdim=True) + 1e-6)) + self.beta


class FrozenNorm(nn.Module):
    """Batch norm as four buffers, as in detection backbones."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        for name in ("weight", "bias", "running_mean", "running_var"):
            start = torch.ones if name in ("weight", "running_var") else torch.zeros
            self.register_buffer(name, start(channels))

    def forward(self, x: Tensor) -> Any:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * over_space(scale[None], self.rank) + over_space(shift[None], self.rank)


def norm(draw: Draw, channels: int, rank: int) -> nn.Module:
    """Return a normalisation of maps, or none."""
    groups = draw.one(*(n for n in (1, 2, 3, 4, channels) if channels % n == 0))
    makers: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "batch": lambda: by_rank("BatchNorm", rank)(channels),
        "bare batch": lambda: by_rank("BatchNorm", rank)(channels, affine=False),
        "momentless": lambda: by_rank("BatchNorm", rank)(channels, track_running_stats=False),
        "group": lambda: nn.GroupNorm(groups, channels),
        "bare group": lambda: nn.GroupNorm(groups, channels, affine=False),
        "instance": lambda: by_rank("InstanceNorm", rank)(channels, affine=True),
        "tracked": lambda: by_rank("InstanceNorm", rank)(channels, track_running_stats=True),
        "layer": lambda: ChannelsLast(nn.LayerNorm(channels)),
        "bare layer": lambda: ChannelsLast(nn.LayerNorm(channels, elementwise_affine=False)),
        "rms": lambda: ChannelsLast(nn.RMSNorm(channels)),
        "hand": lambda: HandNorm(channels, rank, "layer"),
        "hand rms": lambda: HandNorm(channels, rank, "rms"),
        "response": lambda: ResponseNorm(channels, rank),
        "frozen": lambda: FrozenNorm(channels, rank),
        "local": lambda: nn.LocalResponseNorm(3),
    }
    return makers[draw.one("batch", "batch", *makers)]()


def activation(draw: Draw, channels: int) -> nn.Module:
    """Return an activation function."""
    makers: tuple[Callable[[], nn.Module], ...] = (
        lambda: nn.ReLU(inplace=True),
        nn.ReLU,
        nn.SiLU,
        nn.GELU,
        nn.Sigmoid,
        nn.Tanh,
        nn.Softplus,
        nn.Hardswish,
        nn.ELU,
        nn.Mish,
        lambda: nn.LeakyReLU(0.1),
        lambda: nn.PReLU(channels),
        nn.PReLU,
        nn.Identity,
        lambda: nn.Threshold(0.1, 0.5),
        nn.Softsign,
        nn.RReLU,
    )
    return draw.one(*makers)()
