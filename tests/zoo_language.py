"""Nets as language and speech models are written: shared heads, rotated positions, packed sizes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_case import net, tokens


@net(2 + 12, tokens(width=12))
class SharedKeyHeads(nn.Module):
    """The fused operator lets two query heads in a row share a key head: they go together."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 3
        self.embed, self.q, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.k, self.v, self.head = nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        q, k, v = (
            t.view(*x.shape[:-1], -1, self.width).transpose(1, 2)
            for t in (self.q(x), self.k(x), self.v(x))
        )
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=True)
        return self.head(x + self.out(y.transpose(1, 2).reshape(*x.shape[:-1], -1)))


@net(2 + 12, tokens(width=12))
class RepeatedKeyHeads(nn.Module):
    """Keys and values are repeated by a stored number; positions rotate halves of each head."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.shared = 4, 2
        self.embed, self.q, self.out = nn.Linear(12, 12), nn.Linear(12, 16), nn.Linear(16, 12)
        self.k, self.v, self.head = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(12, 2)
        self.register_buffer("frequency", torch.tensor([1.0, 0.1]))

    frequency: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[2])[:, None] * self.frequency
        angle = torch.cat((angle, angle), -1)
        half = torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)
        return x * angle.cos() + half * angle.sin()

    def repeat(self, x: Tensor) -> Tensor:
        batch, heads, length, width = x.shape
        x = x[:, :, None].expand(batch, heads, self.shared, length, width)
        return x.reshape(batch, heads * self.shared, length, width)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        q, k, v = (
            t.view(*x.shape[:-1], -1, self.width).transpose(1, 2)
            for t in (self.q(x), self.k(x), self.v(x))
        )
        weights = self.rotate(q) @ self.repeat(self.rotate(k)).transpose(2, 3) * 0.5
        y = weights.softmax(-1, dtype=torch.float32).to(q.dtype) @ self.repeat(v)
        return self.head(x + self.out(y.transpose(1, 2).reshape(*x.shape[:-1], -1).contiguous()))


@net(8 + 6, tokens())
class SizesInTensors(nn.Module):
    """A length is worked out with tensors before it becomes a size; channels have nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        parts: Any = torch.div(torch.tensor(x.shape[1]), 2, rounding_mode="trunc")
        x = self.a(x[:, : 2 * parts])
        x = x.view(x.shape[0], parts, 2, x.shape[2])
        x = torch.cat([x, torch.zeros((x.shape[0], parts, 1, x.shape[3]), dtype=x.dtype)], 2)
        return self.head(self.b(x))


@lru_cache(maxsize=4)
def _positions(shape: torch.Size) -> Tensor:
    return torch.linspace(0, 1, shape[1], dtype=torch.float64)[None, :, None]


@net(8, tokens())
class CachedPositions(nn.Module):
    """A table is looked up under the whole shape, of which it only needs the length."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.head(x + _positions(x.shape))
