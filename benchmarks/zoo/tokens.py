"""Nets on token sequences: attention in its many spellings, rankings, recurrence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import conv, image, net, tokens


@net(8 + 12, tokens())
class TokenMixer(nn.Module):
    """LayerNorm, a position parameter whose length stays, a class token, an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.zeros(1, 6, 8))
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x[:, 0])


@net(4 + 12, tokens(width=12))
class FusedAttention(nn.Module):
    """Heads of a fused projection go; the number of heads is stored anew."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 3
        self.scale = self.width**-0.5
        self.embed, self.norm = nn.Linear(12, 12), nn.LayerNorm(12)
        self.qkv, self.out, self.head = nn.Linear(12, 36), nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, length, 3, self.heads, self.width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        y = (weights @ v).transpose(1, 2).reshape(batch, length, -1)
        return self.head(x + self.out(y))


@net(3 + 12 + 12, tokens(width=12))
class EquatedWidths(nn.Module):
    """``reshape(B, N, C)`` equates the width of all heads with that of the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.scale = 0.5
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.qkv, self.out, self.head = nn.Linear(12, 36), nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        y = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        return self.head(F.relu(self.second(self.out(y))))


@net(3 + 12, tokens(width=12))
class LibraryAttention(nn.Module):
    """Fused attention without a scale divides by the head width: heads go, the width stays."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.embed = nn.Linear(12, 12)
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.out, self.head = nn.Linear(12, 12), nn.Linear(12, 2)

    def split(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        y = F.scaled_dot_product_attention(
            self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        )
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


@net(2 + 12, tokens(width=12))
class GroupedQueryAttention(nn.Module):
    """Two query heads share one key and value head: they go together."""

    def __init__(self) -> None:
        super().__init__()
        self.key_heads = 2
        self.embed, self.q, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.k, self.v, self.head = nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.key_heads, 2, -1).permute(0, 2, 3, 1, 4)
        k = self.k(x).view(batch, length, self.key_heads, 1, -1).permute(0, 2, 3, 1, 4)
        v = self.v(x).view(batch, length, self.key_heads, 1, -1).permute(0, 2, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).permute(0, 3, 1, 2, 4)
        return self.head(x + self.out(y.reshape(batch, length, -1)))


@net(3 + 2 + 8, tokens(width=8))
class LearnedQueries(nn.Module):
    """Learned queries collect, then serve as keys: the softmax over them is a statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.queries, self.embed = nn.Parameter(torch.zeros(1, 3, 8)), nn.Linear(8, 8)
        self.q, self.v = nn.Linear(8, 8), nn.Linear(8, 8)
        self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def attend(self, x: Tensor, memory: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for t in (self.q(x), self.q(memory), self.v(memory))
        )
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        result: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return result

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        return self.head(self.attend(x, self.attend(self.queries.expand(x.shape[0], -1, -1), x)))


@net(2 + 8, tokens(width=8))
class EinsumAttention(nn.Module):
    """Attention written with ``einsum``; sizes only appear in views."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.embed, self.qkv = nn.Linear(8, 8), nn.Linear(8, 24)
        self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        q, k, v = (t.unflatten(2, (self.heads, -1)) for t in self.qkv(x).chunk(3, dim=-1))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        y = torch.einsum("bhqk,bkhd->bqhd", weights, v)
        return self.head(x + self.out(y.flatten(2)))


@net(6, tokens(), frozen=("attribute",))
class ScaledByWidth(nn.Module):
    """A size used as a number: the width it was read from stays."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.head(self.b(x * x.shape[-1] ** -0.5))


@net(6, tokens(), frozen=("attribute",))
class CheckedWidth(nn.Module):
    """The code compares a width with a number and goes on: the width stays."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        if x.shape[-1] != 8:
            raise ValueError("expected 8 channels")
        return self.head(self.b(x))


@net(8, tokens())
class CheckedAgainstAttribute(nn.Module):
    """The code compares a width with a stored one: the stored one follows."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        if x.shape[-1] != self.width:
            raise ValueError(f"expected {self.width} channels")
        return self.head(x)


@net(8, lambda: torch.arange(10).reshape(2, 5) % 7)
class TiedEmbedding(nn.Module):
    """One parameter embeds and classifies; its rows are looked up, its columns are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(7, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Any:
        y = self.embed(x)
        return self.head(y + self.mix(y))


@net(8 + 6, tokens())
class RankedTokens(nn.Module):
    """The best tokens are gathered with an index as wide as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score = nn.Linear(6, 8), nn.Linear(8, 2)
        self.mix, self.head = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        score = self.score(x)
        best = score.amax(-1).topk(3, dim=1).indices
        wide = best.unsqueeze(-1).repeat(1, 1, x.shape[-1])
        chosen = x.gather(1, wide) + x[torch.arange(x.shape[0])[:, None], best]
        return self.head(self.mix(chosen)), score


@net(2 + 8 + 8 + 4, tokens(width=8))
class DeformableAttention(nn.Module):
    """Heads fold into the batch of a grid sample; offsets belong to their head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.points, self.width = 2, 3, 8
        self.value, self.offsets = nn.Linear(8, 8), nn.Linear(8, 2 * 3 * 2)
        self.weights, self.out = nn.Linear(8, 2 * 3), nn.Linear(8, 8)
        self.map, self.embed, self.head = nn.Linear(8, 4), nn.Linear(8, 8), nn.Linear(8, 2)
        self.widen = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        batch, length, _ = x.shape
        plane = self.widen(self.map(x))[:, :4]
        value = self.value(plane).view(batch, 4, self.heads, self.width // self.heads)
        value = value.flatten(2).transpose(1, 2)
        value = value.reshape(batch * self.heads, self.width // self.heads, 2, 2)
        grid = self.offsets(x).view(batch, length, self.heads, self.points, 2).tanh()
        grid = grid.transpose(1, 2).flatten(0, 1)
        read = F.grid_sample(value, grid, align_corners=False)
        weights = self.weights(x).view(batch, length, self.heads, self.points).softmax(-1)
        weights = weights.transpose(1, 2).reshape(batch * self.heads, 1, length, self.points)
        y = (read * weights).sum(-1).view(batch, self.width, length)
        return self.head(x + self.out(y.transpose(1, 2)))


@net(3 + 12, image(channels=3, size=8))
class WindowedAttention(nn.Module):
    """Windows, a shift in space, and a table of biases looked up by relative position."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.window, self.scale = 3, 4, 0.5
        self.embed, self.qkv, self.out = conv(3, 12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.table, self.head = nn.Parameter(torch.zeros(49, 3)), nn.Linear(12, 2)
        place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
        place = place.flatten(1)
        distance = (place[:, :, None] - place[:, None]) + 3
        self.register_buffer("index", distance[0] * 7 + distance[1])

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        w = self.window
        y = torch.roll(x, (-2, -2), (1, 2))
        y = y.view(batch, height // w, w, width // w, w, channels).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, w * w, channels)
        qkv = self.qkv(y).reshape(y.shape[0], w * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(w * w, w * w, -1).permute(2, 0, 1)
        attention = (qkv[0] * self.scale) @ qkv[1].transpose(-2, -1) + bias
        y = (attention.softmax(-1) @ qkv[2]).transpose(1, 2).flatten(2)
        y = self.out(y).view(batch, height // w, width // w, w, w, -1).permute(0, 1, 3, 2, 4, 5)
        y = torch.roll(y.reshape(batch, height, width, -1), (2, 2), (1, 2))
        return self.head(x + y)


@net(5 + 4 + 3, tokens())
class Recurrent(nn.Module):
    """A recurrent layer unrolls into products; its three gates shrink alike."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.memory = nn.Linear(6, 5), nn.GRU(5, 4, batch_first=True)
        self.mix, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.mix(self.memory(self.embed(x))[0]))


@net(3)
class NeighbourhoodAttention(nn.Module):
    """The code takes ``channels * window`` entries for a neighbourhood of as many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.window = 3, 3
        self.embed, self.value, self.out = conv(3, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.weigh, self.head = nn.Linear(12, 3 * 81), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x).permute(0, 2, 3, 1)
        batch, high, wide, width = x.shape
        area = self.window * self.window
        value = F.unfold(self.value(x).permute(0, 3, 1, 2), self.window, padding=1)
        value = value.reshape(batch, self.heads, width // self.heads, area, high * wide)
        weight = self.weigh(x).reshape(batch, high * wide, self.heads, area, area)
        y = weight.permute(0, 2, 1, 3, 4).softmax(-1) @ value.permute(0, 1, 4, 3, 2)
        y = y.permute(0, 1, 4, 3, 2).reshape(batch, width * area, high * wide)
        y = F.fold(y, (high, wide), self.window, padding=1).permute(0, 2, 3, 1)
        return self.head(x + self.out(y))
