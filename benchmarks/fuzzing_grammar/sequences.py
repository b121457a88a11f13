"""Blocks on tokens ``[batch, length, width]``: attention in many spellings and what is beside."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing_grammar.parts import Draw, activation, block

NORMS = (nn.LayerNorm, nn.RMSNorm, lambda n: nn.LayerNorm(n, elementwise_affine=False), nn.Identity)


class _Mixed(nn.Module):
    """Norm before or after, and a shortcut."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.width, self.heads = shape[2], 2
        make: Any = draw.one(*NORMS)
        self.before, self.norm = draw.chance(0.7), make(self.width)

    def mix(self, x: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        if self.before:
            return x + self.mix(self.norm(x))
        return self.norm(x + self.mix(x))


@block("tokens")
class Attention(_Mixed):
    """Projections of queries, keys and values of their own."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__(shape, draw)
        self.how = draw.one(
            "library", "scaled", "hand", "einsum", "linear", "grouped", "rotary", "biased",
            "causal", "normed", "talking", "learned", "window", "channels",
        )  # fmt: skip
        self.heads = draw.one(2, 4)
        self.head_dim = draw.one(2, 4)
        inner = self.heads * self.head_dim
        self.kv_heads = 2 if self.how == "grouped" else self.heads
        self.q = nn.Linear(self.width, inner, bias=draw.chance(0.5))
        self.k = nn.Linear(self.width, self.kv_heads * self.head_dim)
        self.v = nn.Linear(self.width, self.kv_heads * self.head_dim)
        self.out = nn.Linear(inner, self.width)
        self.scale = self.head_dim**-0.5
        self.bias = nn.Parameter(torch.ones(self.heads, shape[1], shape[1]))
        self.talk = nn.Linear(self.heads, self.heads)
        self.norm_q, self.norm_k = nn.RMSNorm(self.head_dim), nn.RMSNorm(self.head_dim)
        self.queries = nn.Parameter(torch.ones(1, 3, self.width))

    def cut(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)

    def mix(self, x: Tensor) -> Any:
        if self.how == "learned":
            few = self.attend(self.queries.expand(len(x), -1, -1), x)
            return self.attend(x, few)
        if self.how == "window":
            batch, length, width = x.shape
            padded = F.pad(x, (0, 0, 0, -length % 2))
            windows = padded.reshape(-1, 2, width)
            return self.attend(windows, windows).reshape(batch, -1, width)[:, :length]
        return self.attend(x, x)

    def attend(self, x: Tensor, memory: Tensor) -> Any:
        q, k, v = self.q(x), self.k(memory), self.v(memory)
        if self.how == "channels":
            weights = (q.transpose(1, 2) @ k * self.scale).softmax(-1)
            return self.out((weights @ v.transpose(1, 2)).transpose(1, 2))
        q, k, v = self.cut(q, self.heads), self.cut(k, self.kv_heads), self.cut(v, self.kv_heads)
        return self.out(self.weighted(q, k, v).transpose(1, 2).flatten(2))

    def weighted(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.how == "grouped":
            repeats = self.heads // self.kv_heads
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        if self.how == "normed":
            q, k = self.norm_q(q), self.norm_k(k)
        if self.how == "rotary":
            q, k = self.rotated(q), self.rotated(k)
        if self.how == "library":
            return F.scaled_dot_product_attention(q, k, v)
        if self.how == "causal":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        if self.how in ("scaled", "window", "learned", "grouped"):
            return F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        if self.how == "linear":
            return (F.elu(q) + 1) @ ((F.elu(k) + 1).transpose(-1, -2) @ v)
        if self.how == "einsum":
            weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
            return torch.einsum("bhqk,bhkd->bhqd", weights, v)
        scores = q @ k.transpose(-1, -2) * self.scale
        if self.how == "biased":
            scores = scores + self.bias
        if self.how == "talking":
            scores = self.talk(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return scores.softmax(-1) @ v

    def rotated(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)[:, None]
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


@block("tokens")
class FusedAttention(_Mixed):
    """One projection for queries, keys and values."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__(shape, draw)
        self.how = draw.one("open", "by width", "chunks", "per head", "interleaved")
        self.head_dim = draw.one(3, 4)
        self.inner = self.heads * self.head_dim
        self.qkv = nn.Linear(self.width, 3 * self.inner, bias=draw.chance(0.5))
        self.out = nn.Linear(self.inner, self.width)

    def mix(self, x: Tensor) -> Any:
        batch, length, _ = x.shape
        qkv = self.qkv(x)
        if self.how == "chunks":
            q, k, v = (
                t.view(batch, length, self.heads, -1).transpose(1, 2) for t in qkv.chunk(3, -1)
            )
        elif self.how == "per head":
            qkv = qkv.view(batch, length, self.heads, 3 * self.head_dim).transpose(1, 2)
            q, k, v = qkv.split(self.head_dim, dim=-1)
        elif self.how == "interleaved":
            q, k, v = qkv.view(batch, length, self.heads, -1, 3).transpose(1, 2).unbind(-1)
        else:
            last = -1 if self.how == "open" else self.inner // self.heads
            q, k, v = qkv.reshape(batch, length, 3, self.heads, last).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        y = (weights @ v).transpose(1, 2)
        return self.out(y.reshape(batch, length, -1))


@block("tokens")
class Library(nn.Module):
    """Attention and whole layers of `torch.nn`."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.how = draw.one("attention", "weights", "cross", "encoder", "decoder", "sequence first")
        wide = 2 * (-(-shape[2] // 2))
        self.widen = nn.Linear(shape[2], wide)
        inner: dict[str, Any] = {
            "dim_feedforward": draw.width(),
            "dropout": 0.1,
            "batch_first": True,
        }
        if self.how == "encoder":
            self.layer: nn.Module = nn.TransformerEncoderLayer(
                wide, 2, norm_first=draw.chance(0.5), **inner
            )
        elif self.how == "decoder":
            self.layer = nn.TransformerDecoderLayer(wide, 2, activation="gelu", **inner)
        else:
            self.layer = nn.MultiheadAttention(
                wide, 2, batch_first=self.how != "sequence first", bias=draw.chance(0.7)
            )
        self.queries = nn.Parameter(torch.ones(shape[1], 1, wide))

    def forward(self, x: Tensor) -> Any:
        x = self.widen(x)
        if self.how == "encoder":
            return self.layer(x)
        if self.how == "decoder":
            return self.layer(x, x.flip(1))
        if self.how == "sequence first":
            x = x.transpose(0, 1)
            queries = x + self.queries
            return self.layer(queries, x, x, need_weights=False)[0].transpose(0, 1)
        if self.how == "weights":
            y, weights = self.layer(x, x, x, need_weights=True)
            return y + weights.mean((1, 2), keepdim=True)
        queries = x.roll(1, 1) if self.how == "cross" else x
        return x + self.layer(queries, x, x, need_weights=False)[0]


@block("tokens")
class Feedforward(_Mixed):
    """What stands between attention layers."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__(shape, draw)
        inner = draw.width(1, 12)
        self.how = draw.one("plain", "gated", "glu", "tied", "mixer", "conv", "pooled", "embedding")
        self.up, self.gate = nn.Linear(self.width, inner), nn.Linear(self.width, inner)
        self.down, self.both = nn.Linear(inner, self.width), nn.Linear(self.width, 2 * inner)
        self.act, self.along = activation(draw, 1), nn.Linear(shape[1], shape[1])
        self.local = nn.Conv1d(inner, inner, 3, padding=1, groups=inner)
        self.table = nn.Embedding(8, inner)

    def mix(self, x: Tensor) -> Any:
        if self.how == "gated":
            return self.down(F.silu(self.gate(x)) * self.up(x))
        if self.how == "glu":
            return self.down(F.glu(self.both(x), -1))
        if self.how == "tied":
            return F.linear(F.relu(self.up(x)), self.up.weight.t())
        if self.how == "mixer":
            return self.along(x.mT).mT
        if self.how == "conv":
            return self.down(self.local(self.up(x).mT).mT)
        if self.how == "pooled":
            return self.down(F.relu(self.up(x.mean(1, keepdim=True)))).expand_as(x)
        if self.how == "embedding":
            places = torch.arange(x.shape[1], device=x.device) % 8
            return self.down(self.up(x) + self.table(places))
        return self.down(self.act(self.up(x)))


@block("tokens")
class Positions(nn.Module):
    """Class tokens, learned positions, tokens picked by score, and dropped again."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.how = draw.one("class token", "learned", "sinus", "top", "padded", "mean")
        inner = draw.width()
        self.embed, self.mark = nn.Linear(shape[2], inner), nn.Parameter(torch.ones(1, 1, inner))
        self.place = nn.Parameter(torch.ones(1, shape[1], inner))
        self.rank, self.mix = nn.Linear(inner, 1), nn.Linear(inner, inner)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        if self.how == "class token":
            y = self.mix(torch.cat([self.mark.expand(len(x), -1, -1), x], 1))
            return y[:, 1:] + y[:, :1]
        if self.how == "learned":
            return self.mix(x + self.place)
        if self.how == "sinus":
            steps = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)
            return self.mix(x) + steps.sin()[None, :, None]
        if self.how == "top":
            best = self.rank(x)[..., 0].topk(2, dim=1).indices
            chosen = x.gather(1, best[..., None].expand(-1, -1, x.shape[2]))
            return self.mix(x) + chosen.mean(1, keepdim=True)
        if self.how == "padded":
            return self.mix(F.pad(x, (0, 0, 1, 1)))[:, 1:-1]
        return self.mix(x - x.mean(1, keepdim=True))
