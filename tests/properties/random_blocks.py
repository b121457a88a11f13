"""Building blocks on maps ``[batch, channels, height, width]`` for random nets.

A block takes any number of channels: where it needs a multiple, a convolution of its own makes
one. Each comes in several spellings (``how``), because the spelling is what a trace sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Block = Callable[[int, int, str], nn.Module]
"""``(input channels, width, spelling) -> module``; the width is 1 to 3."""

BLOCKS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {}


def block(*spellings: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a block with its spellings, the plainest first."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        BLOCKS[cls.__name__] = (cls, spellings)
        return cls

    return register


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class ChannelsLastNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Any) -> Any:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda _: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "bare batch": lambda n: nn.BatchNorm2d(n, affine=False),
    "group": lambda n: nn.GroupNorm(2, n),
    "group of one": lambda n: nn.GroupNorm(n, n),
    "one group": lambda n: nn.GroupNorm(1, n),
    "instance": lambda n: nn.InstanceNorm2d(n, affine=True),
    "bare instance": nn.InstanceNorm2d,
    "layer": ChannelsLastNorm,
}
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda _: nn.ReLU(inplace=True),
    "sigmoid": lambda _: nn.Sigmoid(),
    "slopes": nn.PReLU,
    "gelu": lambda _: nn.GELU(),
}


@block(*NORMS, "sigmoid", "slopes", "gelu")
class Plain(nn.Module):
    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__()
        norm = NORMS.get(how, nn.BatchNorm2d)(4 * width)
        activation = ACTIVATIONS.get(how, ACTIVATIONS["relu"])(4 * width)
        self.layers = nn.Sequential(conv(c, 4 * width), norm, activation)

    def forward(self, x: Any) -> Any:
        return self.layers(x)


@block("identity", "projection", "strided", "in place", "weighted", "padded")
class Residual(nn.Module):
    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        stride = 2 if how == "strided" else 1
        out = c + 2 if how == "padded" else c
        self.a, self.norm = conv(c, 4 * width), nn.BatchNorm2d(4 * width)
        self.b = conv(4 * width, out, stride=stride)
        self.short = conv(c, c, 1, stride=stride) if how in ("projection", "strided") else None
        self.gamma = nn.Parameter(torch.ones(c, 1, 1)) if how == "weighted" else None

    def forward(self, x: Any) -> Any:
        y = self.b(F.relu(self.norm(self.a(x))))
        short = x if self.short is None else self.short(x)
        if self.how == "padded":
            short = F.pad(short, (0, 0, 0, 0, 1, 1))
        if self.gamma is not None:
            y = y * self.gamma
        if self.how == "in place":
            y += short
            return y
        return short + y


@block("cat", "norm", "reversed", "new")
class Dense(nn.Module):
    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b = conv(c, 2 * width + 1), conv(c + 2 * width + 1, 3)
        self.norm = nn.BatchNorm2d(c + 2 * width + 4)

    def forward(self, x: Any) -> Any:
        a = self.a(x)
        if self.how == "new":
            both = x.new_zeros(x.shape[0], x.shape[1] + a.shape[1], *x.shape[2:])
            both[:, : x.shape[1]] = x
            both[:, x.shape[1] :] = a
        else:
            both = torch.cat([x, a], 1)
        b = self.b(both)
        if self.how == "reversed":
            return torch.cat([b, a, x], 1)
        y = torch.cat([x, a, b], dim=1)
        return self.norm(y) if self.how == "norm" else y


@block("sum", "cat", "stack", "selected", "maximum")
class Branches(nn.Module):
    """Branches of different strides, resized and merged."""

    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__()
        self.how, out = how, 2 * width + 2
        self.a, self.b, self.c = conv(c, out), conv(c, out, stride=2), conv(c, out, 1)
        self.squeeze, self.choose = nn.Linear(out, 3), nn.Linear(3, 3 * out)
        self.weights = nn.Parameter(torch.zeros(3))

    def forward(self, x: Any) -> Any:
        a, b, c = self.a(x), self.b(x), self.c(F.avg_pool2d(x, 3, 1, 1))
        b = F.interpolate(b, size=x.shape[-2:], mode="nearest")
        if self.how == "cat":
            return torch.cat((a, b, c), 1)
        if self.how == "maximum":
            return torch.maximum(torch.maximum(a, b), c)
        if self.how == "sum":
            weights = self.weights.softmax(0)
            return weights[0] * a + weights[1] * b + weights[2] * c
        stack = torch.stack([a, b, c], dim=1)
        if self.how == "stack":
            return (stack * self.weights.view(1, -1, 1, 1, 1)).sum(1)
        choice = self.choose(F.relu(self.squeeze(stack.sum(1).mean((2, 3)))))
        choice = choice.view(x.shape[0], 3, -1).softmax(1)
        return (stack * choice[..., None, None]).sum(1)


@block("linear", "conv", "bare", "last", "across", "spatial", "local")
class Gate(nn.Module):
    """Squeeze-and-excite and its kin."""

    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.a = conv(c, 4 * width)
        c = 4 * width
        self.squeeze, self.excite = nn.Linear(c, 3), nn.Linear(3, c)
        self.squeeze_map, self.excite_map = conv(c, 3, 1), conv(3, c, 1)
        self.spatial, self.local = conv(2, 1), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Any) -> Any:
        x = self.a(x)
        if self.how == "linear":
            batch, channels, _, _ = x.size()
            gate = F.adaptive_avg_pool2d(x, 1).view(batch, channels)
            gate = self.excite(F.relu(self.squeeze(gate))).view(batch, channels, 1, 1)
            return x * gate.sigmoid().expand_as(x)
        if self.how == "conv":
            gate = self.excite_map(F.relu(self.squeeze_map(x.mean((2, 3), keepdim=True))))
            return x * F.hardsigmoid(gate)
        if self.how == "last":
            y = x.permute(0, 2, 3, 1)
            gate = self.excite(self.squeeze(y.mean(dim=(1, 2))))
            return (y * gate[:, None, None].softmax(-1)).permute(0, 3, 1, 2)
        if self.how == "across":
            return x / (1 + x.norm(dim=1, keepdim=True))
        if self.how == "spatial":
            summary = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
            return x * self.spatial(summary).sigmoid()
        if self.how == "local":
            gate = self.local(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
            return x * gate.sigmoid()[:, :, None, None]
        return x * x.mean((2, 3), keepdim=True).sigmoid()


@block("two", "shuffled", "depthwise", "multiplier", "narrow", "transposed", "transposed groups",
       "transposed depthwise")  # fmt: skip
class Grouped(nn.Module):
    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__()
        self.how, w = how, 4 * width
        self.a = conv(c, w)
        makers: dict[str, Callable[[], nn.Module]] = {
            "two": lambda: conv(w, 6, groups=2),
            "shuffled": lambda: conv(w, 8, groups=2),
            "depthwise": lambda: conv(w, w, groups=w),
            "multiplier": lambda: conv(w, 2 * w, groups=w),
            "narrow": lambda: conv(w, w // 2, groups=w // 2),
            "transposed": lambda: nn.ConvTranspose2d(w, 5, 3, 1, 1),
            "transposed groups": lambda: nn.ConvTranspose2d(w, 8, 3, 1, 1, groups=2),
            "transposed depthwise": lambda: nn.ConvTranspose2d(w, 2 * w, 3, 1, 1, groups=w),
        }
        self.b = makers[how]()
        self.norm = nn.BatchNorm2d(w)

    def forward(self, x: Any) -> Any:
        y = self.b(F.relu(self.norm(self.a(x))))
        return F.channel_shuffle(y, 2) if self.how == "shuffled" else y


@block("cat", "kept", "before", "transposed", "twice")
class Straddled(nn.Module):
    """A grouped convolution whose groups begin and end inside of the maps that it reads."""

    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        total = 2 * width + 4
        self.a, self.b, self.whole = conv(c, 3), conv(c, 2 * width + 1), conv(c, total)
        self.grouped = (
            nn.ConvTranspose2d(total, total, 3, 1, 1, groups=2)
            if how == "transposed"
            else conv(total, total, groups=2)
        )

    def forward(self, x: Any) -> Any:
        if self.how == "before":
            return self.grouped(self.whole(x)) + torch.cat([self.a(x), self.b(x)], 1)
        a = torch.ones_like(self.a(x)) if self.how == "kept" else self.a(x)
        y = self.grouped(torch.cat([a, self.b(x)], 1))
        return self.grouped(F.relu(y)) if self.how == "twice" else y


@block("glu", "chunk", "split", "sizes", "slices", "narrow", "unflatten", "one half", "third",
       "tensor split", "every other", "view")  # fmt: skip
class Cut(nn.Module):
    """Channels cut into pieces that are used differently."""

    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__()
        self.how, self.piece, self.parts = how, 2 * width, 2
        self.sizes = [2 * width, 2 * width]
        self.a = conv(c, 4 * width)
        self.b = conv(2 * width, 3)

    def forward(self, x: Any) -> Any:
        x = self.a(x)
        if self.how == "glu":
            return F.glu(x, 1)
        if self.how == "chunk":
            a, b = x.chunk(2, 1)
        elif self.how == "split":
            a, b = x.split(self.piece, dim=1)
        elif self.how == "sizes":
            a, b = torch.split(x, self.sizes, 1)
        elif self.how == "slices":
            half = x.size(1) // 2
            a, b = x[:, :half], x[:, half:]
        elif self.how == "narrow":
            a, b = x.narrow(1, 0, self.piece), x.narrow(1, self.piece, self.piece)
        elif self.how == "unflatten":
            a, b = x.unflatten(1, (2, -1)).unbind(1)
        elif self.how == "one half":
            a = b = x[:, : x.shape[1] // self.parts]
        elif self.how == "third":
            a, b = x[:, : self.piece], x[:, -self.piece :]
        elif self.how == "tensor split":
            a, b = torch.tensor_split(x, 2, dim=1)
        elif self.how == "every other":
            a, b = x[:, ::2], x[:, 1::2]
        else:
            pairs = x.view(x.shape[0], -1, 2, *x.shape[2:])
            a, b = pairs[:, :, 0], pairs[:, :, 1]
        return torch.cat([a * b.sigmoid(), self.b(a)], 1)


@block("view", "open", "attribute", "flatten", "einops", "module")
class Shuffle(nn.Module):
    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__()
        self.how, self.groups = how, 2
        self.a = conv(c, 4 * width)
        self.shuffle, self.norm = nn.ChannelShuffle(2), nn.BatchNorm2d(4 * width)

    def forward(self, x: Any) -> Any:
        x = self.a(x)
        batch, channels, height, width = x.shape
        if self.how == "view":
            x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
            x = x.contiguous().view(batch, channels, height, width)
        elif self.how == "open":
            x = x.reshape(batch, 2, -1, height, width).transpose(1, 2)
            x = x.reshape(batch, -1, height, width)
        elif self.how == "attribute":
            x = x.view(batch, self.groups, channels // self.groups, height * width)
            x = x.permute(0, 2, 1, 3).reshape(batch, channels, height, width)
        elif self.how == "flatten":
            x = x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        elif self.how == "einops":
            x = torch.stack(x.chunk(2, 1), 2).flatten(1, 2)
        else:
            x = self.shuffle(x)
        return self.norm(x)


@block("up", "down", "both", "unfold", "hand", "repeat", "interleave", "outer", "maxout", "flip",
       "roll", "index", "pick", "mask", "patches")  # fmt: skip
class Layout(nn.Module):
    """Channels to space and back, repeated, multiplied out, picked."""

    order: Tensor

    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b = conv(c, 4 * width), conv(c, 4 * width)
        self.register_buffer("order", torch.arange(4 * width).flip(0))
        self.scale = nn.Parameter(torch.ones(4 * width))

    def forward(self, x: Any) -> Any:  # noqa: C901 - a list of spellings
        a, b = self.a(x), self.b(x)
        batch, channels, height, width = a.shape
        if self.how == "up":
            return F.pixel_shuffle(a, 2)
        if self.how == "down":
            return F.pixel_unshuffle(F.interpolate(a, size=(8, 8)), 2)
        if self.how == "both":
            return F.pixel_unshuffle(F.pixel_shuffle(a, 2), 2)
        if self.how == "unfold":
            return F.unfold(a, 3, padding=1).view(batch, -1, height, width)
        if self.how == "hand":
            y = a.view(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
            return y.reshape(batch, channels // 4, 2 * height, 2 * width)
        if self.how == "repeat":
            return a.repeat(1, 2, 1, 1) * b.tile(1, 2, 1, 1).sigmoid()
        if self.how == "interleave":
            return a.repeat_interleave(2, dim=1)
        if self.how == "outer":
            return (a[:, :, None] * b[:, None, :3]).flatten(1, 2)
        if self.how == "maxout":
            return a.view(batch, channels // 2, 2, height, width).amax(2)
        if self.how == "flip":
            return a + b.flip(1)
        if self.how == "roll":
            return a + b.roll(1, 1)
        if self.how == "index":
            return a + b[:, self.order]
        if self.how == "pick":
            return a * b[:, :1] + b[:, -1:]
        if self.how == "mask":
            return torch.where(a > 0, a, b).masked_fill(b > 1, 0.5) + self.scale[:, None, None]
        y = a.unfold(2, 2, 2).unfold(3, 2, 2)
        return y.permute(0, 1, 4, 5, 2, 3).reshape(batch, -1, height // 2, width // 2)


@block("twice", "scales", "branches", "tied", "autoencoder", "norm shared", "weight norm")
class Shared(nn.Module):
    """Modules called several times, weights used in two places."""

    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__()
        self.how, w = how, 3 * width + 1
        self.stem, self.other = conv(c, w), conv(c, w)
        self.a, self.b = conv(w, w), conv(w, w)
        self.norm = nn.BatchNorm2d(w)
        if how == "tied":
            self.b.weight = self.a.weight
        if how == "weight norm":
            self.b = parametrizations.weight_norm(self.b)

    def forward(self, x: Any) -> Any:
        x, y = self.stem(x), self.other(x)
        if self.how == "twice":
            return self.a(F.relu(self.a(x)))
        if self.how == "scales":
            small = self.a(F.avg_pool2d(x, 2))
            return self.a(x) + F.interpolate(small, size=x.shape[-2:])
        if self.how == "branches":
            return torch.cat([self.a(x), self.a(y)], 1)
        if self.how == "autoencoder":
            return F.conv_transpose2d(F.relu(self.a(x)), self.a.weight, padding=1)
        if self.how == "norm shared":
            return self.norm(self.a(x)) * self.norm(self.b(y))
        return self.b(F.relu(self.a(x) + y))
