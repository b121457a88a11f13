"""Nets as language and speech models are written: shared heads, rotated positions, packed sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import net, tokens


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


@net(8 + 6 + 5, tokens())
class RoutedExperts(nn.Module):
    """Each token goes to one expert and its result is added back at its place: experts stay."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router, self.head = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.up, self.down = nn.Parameter(torch.ones(3, 6, 8)), nn.Parameter(torch.ones(3, 8, 6))
        self.gate, self.shut = nn.Linear(8, 5), nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        flat = x.reshape(-1, x.shape[-1])
        choice = self.router(flat).argmax(-1)
        y = torch.zeros_like(flat)
        for expert in choice.unique():
            token = torch.where(choice == expert)[0]
            hidden = F.relu(F.linear(flat[token], self.up[expert]))
            y.index_add_(0, token, F.linear(hidden, self.down[expert]))
        y[choice == 1] = self.shut(F.relu(self.gate(flat)))[choice == 1]
        return self.head(x + y.reshape(x.shape))


@net(8 + 6, tokens())
class WrittenPlaces(nn.Module):
    """Tokens are written to places of a longer map by index, all channels of each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        places = torch.arange(x.shape[1])[None, :, None] * 2
        y = x.new_zeros((x.shape[0], 12, x.shape[2]))
        y = y.scatter_add(1, places.expand(x.shape[0], -1, x.shape[2]), x)
        y[:, torch.tensor([1, 3, 5, 7, 9])] = x
        return self.head(self.b(y))


@dataclass(frozen=True)
class Settings:
    width: int = 12
    heads: int = 3
    inner: int = 6


class ConfiguredAttention(nn.Module):
    """Cuts a packed projection by the settings that it shares with all others."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings, self.width = settings, 4
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        packed, end = self.qkv(x), self.settings.heads * self.width
        q, k, v = packed[..., :end], packed[..., end : 2 * end], packed[..., 2 * end :]
        q, k, v = (
            t.view(*x.shape[:2], self.settings.heads, self.width).transpose(1, 2) for t in (q, k, v)
        )
        y = ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        out: Tensor = self.out(y)
        return out


@net(3 + 12 + 6, tokens(width=12))
class SharedSettings(nn.Module):
    """All layers read one settings object: their heads go together, and it tells the new sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()
        self.embed, self.head = nn.Linear(12, 12), nn.Linear(12, 2)
        self.first, self.second = (
            ConfiguredAttention(self.settings),
            ConfiguredAttention(self.settings),
        )
        self.up, self.down = nn.Linear(12, 6), nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        x = x + self.first(x)
        x = x + self.second(x).view(*x.shape[:2], self.settings.width)
        y = F.relu(self.up(x))
        return self.head(x + self.down(y.reshape(-1, self.settings.inner)).view_as(x))
