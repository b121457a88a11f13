"""Blocks that look at a map as a sequence of tokens ``[batch, length, width]``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from random_blocks import block, conv
from torch import nn


class _OnTokens(nn.Module):
    """Embeds a map as tokens, mixes them, and lays them out as a map again."""

    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__()
        self.how, self.dim, self.heads = how, 4 * (width + 1), 2
        self.embed = conv(c, self.dim, 2, stride=2) if width > 2 else conv(c, self.dim, 1)
        self.norm = nn.LayerNorm(self.dim)

    def mix(self, x: Any) -> Any:
        raise NotImplementedError

    def forward(self, x: Any) -> Any:
        x = self.embed(x)
        batch, channels, height, width = x.shape
        y = x.flatten(2).transpose(1, 2)
        y = y + self.mix(self.norm(y))
        if self.heads == 2:
            return y.transpose(1, 2).reshape(batch, channels, height, width)
        return y.mT.unflatten(2, (height, width))


@block("fused", "open", "by width", "chunks", "per head", "norms")
class FusedAttention(_OnTokens):
    """One projection for queries, keys and values."""

    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__(c, width, how)
        self.head_dim = self.dim // self.heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.out = nn.Linear(self.dim, 3 * self.dim), nn.Linear(self.dim, self.dim)
        self.norm_q, self.norm_k = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)

    def mix(self, x: Any) -> Any:
        batch, length, width = x.shape
        qkv = self.qkv(x)
        if self.how == "chunks":
            q, k, v = (
                t.view(batch, length, self.heads, -1).transpose(1, 2) for t in qkv.chunk(3, -1)
            )
        elif self.how == "per head":
            qkv = qkv.view(batch, length, self.heads, 3 * self.head_dim).transpose(1, 2)
            q, k, v = qkv.split(self.head_dim, dim=-1)
        else:
            last = -1 if self.how == "open" else width // self.heads
            last = self.head_dim if self.how == "norms" else last
            qkv = qkv.reshape(batch, length, 3, self.heads, last).permute(2, 0, 3, 1, 4)
            q, k, v = qkv[0], qkv[1], qkv[2]
        if self.how == "norms":
            q, k = self.norm_q(q), self.norm_k(k)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        y = (weights @ v).transpose(1, 2)
        y = y.reshape(batch, length, width) if self.how == "by width" else y.flatten(2)
        return self.out(y)


@block("library", "scaled", "hand", "einsum", "cross", "linear", "channels", "shared keys")
class SplitAttention(_OnTokens):
    """Projections of their own, and attention in many spellings."""

    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__(c, width, how)
        keys = self.dim // self.heads if how == "shared keys" else self.dim
        self.q, self.out = nn.Linear(self.dim, self.dim), nn.Linear(self.dim, self.dim)
        self.k, self.v = nn.Linear(self.dim, keys), nn.Linear(self.dim, keys)
        self.queries = nn.Parameter(torch.zeros(1, 3, self.dim))
        self.scale = 0.5

    def cut(self, x: Any) -> Any:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def mix(self, x: Any) -> Any:
        if self.how == "cross":
            few = self.attend(self.queries.expand(x.shape[0], -1, -1), x)
            return self.attend(x, few)
        return self.attend(x, x)

    def attend(self, x: Any, memory: Any) -> Any:
        q, k, v = self.q(x), self.k(memory), self.v(memory)
        if self.how == "shared keys":
            q = self.cut(q)
            weights = (q @ k[:, None].transpose(-1, -2) * self.scale).softmax(-1)
            return self.out((weights @ v[:, None]).transpose(1, 2).flatten(2))
        if self.how == "channels":
            weights = (q.transpose(1, 2) @ k * self.scale).softmax(-1)
            return self.out((weights @ v.transpose(1, 2)).transpose(1, 2))
        q, k, v = self.cut(q), self.cut(k), self.cut(v)
        if self.how == "library":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.how in ("scaled", "cross"):
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        elif self.how == "einsum":
            weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
            y = torch.einsum("bhqk,bhkd->bhqd", weights, v)
        elif self.how == "linear":
            y = F.elu(q) @ (F.elu(k).transpose(-1, -2) @ v)
        else:
            scores = torch.matmul(q, k.transpose(2, 3)) / self.scale
            scores = scores - scores.amax(-1, keepdim=True)
            y = torch.matmul(scores.exp() / scores.exp().sum(-1, keepdim=True), v)
        return self.out(y.transpose(1, 2).contiguous().view(x.shape[0], x.shape[1], -1))


@block("plain", "gated", "glu", "tied", "sequential", "mixer", "library", "recurrent", "positions")
class TokenMlp(_OnTokens):
    def __init__(self, c: int, width: int, how: str) -> None:
        super().__init__(c, width, how)
        self.heads = 1
        inner = 3 * width + 3
        self.up, self.gate = nn.Linear(self.dim, inner), nn.Linear(self.dim, inner)
        self.down, self.both = nn.Linear(inner, self.dim), nn.Linear(self.dim, 2 * inner)
        self.attention = nn.MultiheadAttention(self.dim, 2, batch_first=True)
        self.memory = nn.GRU(self.dim, inner, batch_first=True)
        self.position = nn.Parameter(torch.zeros(1, 1, self.dim))
        self.mixer = nn.Linear(4, 4)

    def mix(self, x: Any) -> Any:
        if self.how == "gated":
            return self.down(F.silu(self.gate(x)) * self.up(x))
        if self.how == "glu":
            a, b = self.both(x).chunk(2, dim=-1)
            return self.down(a * F.gelu(b))
        if self.how == "tied":
            return F.linear(F.relu(self.up(x)), self.up.weight.t())
        if self.how == "mixer":
            few = self.mixer(x[:, :4].mT).mT
            return few.mean(1, keepdim=True).expand(-1, x.shape[1], -1)
        if self.how == "library":
            return self.attention(x, x, x, need_weights=False)[0]
        if self.how == "recurrent":
            return self.down(self.memory(x)[0])
        if self.how == "positions":
            x = torch.cat([self.position.expand(x.shape[0], -1, -1), x], dim=1)
            return self.down(F.relu(self.up(x)))[:, 1:]
        return self.down(F.gelu(self.up(x)))
