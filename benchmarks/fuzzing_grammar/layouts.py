"""Channels cut, laid out anew, moved into space and back, picked, and repeated."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from fuzzing_grammar.parts import Draw, activation, block, conv, norm, resized, space


@block("map")
class Split(nn.Module):
    """Channels cut into pieces that are used differently: CSP, C2f, Res2Net, gated units."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.rank, self.piece = len(shape) - 2, draw.width(1, 6)
        self.how = draw.one(
            "chunk", "split", "sizes", "slices", "narrow", "unbind", "every other", "glu", "res2",
            "tensor_split", "half", "uneven", "C2f",
        )  # fmt: skip
        self.parts, self.sizes = 2, [self.piece, self.piece]
        both = 2 * self.piece
        self.spread = nn.Sequential(
            conv(self.rank, shape[1], both), norm(draw, both, self.rank), activation(draw, both)
        )
        self.inner = nn.ModuleList(
            conv(self.rank, self.piece, self.piece) for _ in range(draw.number(1, 2))
        )

    def cut(self, x: Tensor) -> Any:
        half = x.shape[1] // self.parts
        pieces = {
            "chunk": lambda: x.chunk(self.parts, 1),
            "split": lambda: x.split(self.piece, dim=1),
            "sizes": lambda: torch.split(x, self.sizes, 1),
            "slices": lambda: (x[:, :half], x[:, half:]),
            "narrow": lambda: (x.narrow(1, 0, self.piece), x.narrow(1, self.piece, self.piece)),
            "unbind": lambda: x.unflatten(1, (2, -1)).unbind(1),
            "every other": lambda: (x[:, ::2], x[:, 1::2]),
            "tensor_split": lambda: x.tensor_split(2, dim=1),
        }
        return pieces.get(self.how, pieces["chunk"])()

    def forward(self, x: Tensor) -> Any:
        x = self.spread(x)
        if self.how == "glu":
            return F.glu(x, 1)
        if self.how == "half":
            x[:, : self.piece] = self.inner[0](x[:, : self.piece].clone())
            return x
        if self.how == "uneven":
            return torch.cat([x[:, :1].exp(), x[:, 1:3] * 2, x[:, 3:].tanh()], 1)
        a, b = self.cut(x)
        if self.how == "C2f":
            maps = [a, b]
            maps.extend(layer(maps[-1]) for layer in self.inner)
            return torch.cat(maps, 1)
        for layer in self.inner:
            b = layer(b) + (a if self.how == "res2" else 0)
        return torch.cat((a, b), 1) if self.how != "every other" else a * b.sigmoid()


@block("map")
class PixelShuffle(nn.Module):
    """Channels to space and space to channels, by the library or by hand."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.rank, width = len(shape) - 2, draw.width(1, 4)
        self.how = draw.one("hand", "library") if self.rank == 2 else "hand"
        self.way = draw.one("up", "down", "there and back")
        self.factor = 2**self.rank
        self.spread = conv(self.rank, shape[1], width * (1 if self.way == "down" else self.factor))

    def up(self, x: Tensor) -> Tensor:
        if self.how == "library":
            return F.pixel_shuffle(x, 2)
        batch, channels, *size = x.shape
        x = x.reshape(batch, channels // self.factor, *([2] * self.rank), *size)
        order = [n for d in range(self.rank) for n in (2 + self.rank + d, 2 + d)]
        return x.permute(0, 1, *order).reshape(batch, -1, *(2 * n for n in size))

    def down(self, x: Tensor) -> Tensor:
        if self.how == "library":
            return F.pixel_unshuffle(x, 2)
        batch, channels, *size = x.shape
        x = x.reshape(batch, channels, *(n for s in size for n in (s // 2, 2)))
        inner = [3 + 2 * d for d in range(self.rank)]
        outer = [2 + 2 * d for d in range(self.rank)]
        return x.permute(0, 1, *inner, *outer).reshape(batch, -1, *(s // 2 for s in size))

    def forward(self, x: Tensor) -> Any:
        y = self.spread(x)
        if self.way == "up":
            return resized(self.up(y), x)
        if self.way == "there and back":
            return self.down(self.up(y))
        even = F.interpolate(y, size=[2 * (n // 2 or 1) for n in y.shape[2:]])
        return resized(self.down(even), x)


@block("map")
class Picked(nn.Module):
    """Operators that look at where a channel is: most of them must freeze it."""

    order: Tensor
    mean: Tensor

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, width = len(shape) - 2, draw.width(2)
        self.how = draw.one(
            "flip", "roll", "index", "pick", "cumsum", "topk", "sort", "gather", "mask", "repeat",
            "interleave", "outer", "maxout", "mixed max", "argmax", "softmax", "where", "shift",
            "unfold", "buffer", "scatter", "logsumexp", "swap",
        )  # fmt: skip
        self.a, self.b = conv(rank, shape[1], width), conv(rank, shape[1], width, 1)
        self.register_buffer(
            "order", torch.randperm(width, generator=torch.Generator().manual_seed(0))
        )
        self.register_buffer("mean", torch.linspace(-1, 1, width).reshape(-1, *([1] * rank)))

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        half = a.shape[1] // 2
        results: dict[str, Any] = {
            "flip": lambda: a + b.flip(1),
            "roll": lambda: a + b.roll(1, 1),
            "index": lambda: a + b[:, self.order],
            "pick": lambda: a * b[:, :1] + b[:, -1:],
            "cumsum": lambda: a + b.cumsum(1),
            "topk": lambda: a + b.topk(3, 1).values.mean(1, keepdim=True),
            "sort": lambda: a.sort(1).values + b,
            "gather": lambda: a + b.gather(1, a.argsort(1)),
            "mask": lambda: a.masked_fill(b > 1, 0.5),
            "repeat": lambda: (
                a.repeat(1, 2, *([1] * (a.ndim - 2))) * torch.cat([b, a], 1).sigmoid()
            ),
            "interleave": lambda: a.repeat_interleave(2, dim=1) + 1,
            "outer": lambda: (a[:, :, None] * b[:, None, :3]).flatten(1, 2),
            "maxout": lambda: a.unflatten(1, (half, 2)).amax(2),
            "mixed max": lambda: torch.maximum(a.unflatten(1, (2, -1))[:, 0], b[:, :half]),
            "argmax": lambda: a * (b == b.amax(1, keepdim=True)),
            "softmax": lambda: a * b.softmax(1),
            "where": lambda: torch.where(a > b, a, b.exp().clamp(max=3)),
            "shift": lambda: torch.cat([a[:, half:], a[:, :half]], 1) + b,
            "unfold": lambda: a.unfold(2, 2, 1).mean(-1),
            "buffer": lambda: (a - self.mean) * b,
            "scatter": lambda: torch.zeros_like(a).index_add(1, self.order, b) + a,
            "logsumexp": lambda: a - b.logsumexp(1, keepdim=True),
            "swap": lambda: a.unflatten(1, (2, half)).flip(1).flatten(1, 2) * b,
        }
        return resized(results[self.how](), x)


@block("map")
class Expanded(nn.Module):
    """Parameters and vectors spread over maps in all spellings."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, self.width = len(shape) - 2, draw.width()
        self.how = draw.one(
            "expand_as", "expand", "broadcast_to", "broadcast_tensors", "repeat", "tile", "view",
            "zeros plus", "stacked", "meshgrid",
        )  # fmt: skip
        self.spread = conv(rank, shape[1], self.width)
        self.scale = nn.Parameter(torch.ones(1, self.width, *([1] * rank)))
        self.flat = nn.Parameter(torch.ones(self.width))

    def forward(self, x: Tensor) -> Any:
        y = self.spread(x)
        ones = [1] * (y.ndim - 2)
        if self.how == "meshgrid":
            grid = torch.meshgrid(
                *(torch.linspace(-1, 1, n, dtype=y.dtype) for n in y.shape[2:]), indexing="ij"
            )
            return torch.cat([y, torch.stack(grid).expand(len(y), *([-1] * (y.ndim - 1)))], 1)
        spread = {
            "expand_as": lambda: self.scale.expand_as(y),
            "expand": lambda: self.scale.expand(y.shape[0], -1, *y.shape[2:]),
            "broadcast_to": lambda: torch.broadcast_to(self.scale, y.shape),
            "broadcast_tensors": lambda: torch.broadcast_tensors(self.scale, y)[0],
            "repeat": lambda: self.scale.repeat(y.shape[0], 1, *y.shape[2:]),
            "tile": lambda: self.scale.tile(y.shape[0], *([1] * (y.ndim - 1))),
            "view": lambda: self.flat.view(1, self.flat.numel(), *ones),
            "zeros plus": lambda: torch.zeros_like(y) + self.flat.reshape(-1, *ones),
            "stacked": lambda: torch.stack([self.scale[0]] * y.shape[0]),
        }
        return y * spread[self.how]()


@block("map")
class Einops(nn.Module):
    """Patterns of einops."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.rank, width = len(shape) - 2, draw.width(4, 8)
        self.how = draw.one("shuffle", "heads", "reduce", "to space", "repeat", "tokens")
        self.spread, self.heads = conv(self.rank, shape[1], width), 2
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        x = self.spread(x)
        flat = x.flatten(2)
        y = self.arranged(flat)
        return y.reshape(len(x), -1, *x.shape[2:]) if y.shape[-1] == flat.shape[-1] else y

    def arranged(self, flat: Tensor) -> Any:
        if self.how == "shuffle":
            return rearrange(flat, "b (g c) s -> b (c g) s", g=4)
        if self.how == "heads":
            y = rearrange(flat, "b (h c) s -> b h s c", h=self.heads)
            y = (y @ y.mT).softmax(-1) @ y
            return rearrange(y, "b h s c -> b (h c) s")
        if self.how == "reduce":
            return flat * reduce(flat, "b c s -> b c 1", "mean").sigmoid()
        if self.how == "to space":
            return (
                rearrange(flat, "b (c two) s -> b c (s two)", two=2).unflatten(2, (-1, 2)).mean(3)
            )
        if self.how == "repeat":
            return repeat(flat.mean(2), "b c -> b c s", s=flat.shape[2]) + flat
        return rearrange(self.mix(rearrange(flat, "b c s -> b s c")), "b s c -> b c s")


@block("map")
class Unfolded(nn.Module):
    """Patches as channels, and summed back; windows by hand."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.rank, width = len(shape) - 2, draw.width(1, 6)
        self.how = draw.one("unfold", "fold", "grid") if self.rank == 2 else "hand"
        self.spread = conv(self.rank, shape[1], width)
        self.offsets = conv(self.rank, shape[1], 2, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.spread(x)
        if self.how == "unfold":
            return F.unfold(y, 3, padding=1).view(len(y), -1, *y.shape[2:])
        if self.how == "fold":
            size: Any = [int(n) for n in y.shape[2:]]
            return F.fold(F.unfold(y, 3, padding=1) * 0.5, size, 3, padding=1)
        if self.how == "grid":
            same = torch.eye(2, 3, dtype=y.dtype).expand(len(y), 2, 3)
            grid = F.affine_grid(same, list(y.shape), align_corners=False)
            grid = grid + 0.1 * self.offsets(x).tanh().permute(0, 2, 3, 1)
            return F.grid_sample(y, grid, align_corners=False)
        padded = F.pad(y, (1, 1) + (0, 0) * (self.rank - 1))
        windows = padded.unfold(-1, 3, 1).movedim(-1, 2).flatten(1, 2)
        return windows + windows.mean(space(windows), keepdim=True)
