"""Nets built on `torch.nn.MultiheadAttention`, each small, float64 and in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from architectures.torchvision_import import import_torchvision
from torch import Tensor, nn

from taskprune.testing import randomise_

WIDTH = 16


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Encoder(nn.Module):
    """Embeds, encodes, and classifies the mean; padding and masks are handed on."""

    def __init__(self, encoder: nn.Module, batch_first: bool = True) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Linear(5, WIDTH), encoder
        self.head = nn.Linear(WIDTH, 3)
        self.tokens = 1 if batch_first else 0

    def forward(self, x: Tensor, **masks: Tensor) -> Any:
        return self.head(self.encoder(self.embed(x), **masks).mean(self.tokens))


class Translator(nn.Module):
    """A whole `nn.Transformer`: attention to oneself, to another, and a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.transformer = nn.Transformer(WIDTH, 4, 1, 2, 24, dropout=0.1, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, source: Tensor, target: Tensor) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(
            target.shape[1], device=target.device, dtype=target.dtype
        )
        out = self.transformer(
            self.embed(source), self.embed(target), tgt_mask=mask, tgt_is_causal=True
        )
        return self.head(out)


class TextBlock(nn.Module):
    """A block of CLIP's text tower: length first, a causal mask kept as a buffer."""

    def __init__(self, length: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, 4)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))
        self.head = nn.Linear(WIDTH, 3)
        mask = torch.full((length, length), float("-inf")).triu(1)
        self.register_buffer("attn_mask", mask, persistent=False)

    def attention(self, x: Tensor) -> Any:
        mask = self.attn_mask.to(dtype=x.dtype, device=x.device)
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        x = x + self.attention(self.ln_1(x))
        return self.head(x + self.mlp(self.ln_2(x)))


class SharedAttention(nn.Module):
    """One attention module under two names, called twice, its weights thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.first = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.blocks = nn.ModuleList([self.first])
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        x = x + self.first(x, x, x)[0]
        x = x + self.blocks[0](x, x, x)[0]
        return self.head(x)


class OtherWidths(nn.Module):
    """Keys and values of other widths than the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(5, WIDTH), nn.Linear(5, 6), nn.Linear(5, 10)
        self.attention = nn.MultiheadAttention(WIDTH, 4, kdim=6, vdim=10, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        out = self.attention(self.query(x), self.key(x), self.value(x), need_weights=False)
        return self.head(out[0])


class MoreKeys(nn.Module):
    """A learned and a zero key behind those of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.attention = nn.MultiheadAttention(
            WIDTH, 4, add_bias_kv=True, add_zero_attn=True, batch_first=True
        )

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    options = {"dropout": 0.1, "batch_first": True} | options
    return nn.TransformerEncoderLayer(WIDTH, 4, 24, **options)


def small_vit() -> Any:
    torchvision = import_torchvision()
    return torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=4, hidden_dim=WIDTH, mlp_dim=24,
        num_classes=5,
    )  # fmt: skip


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "post-norm encoder": (lambda: Encoder(layer()), lambda: draw(2, 6, 5)),
    "pre-norm encoder": (
        lambda: Encoder(layer(norm_first=True, activation="gelu")),
        lambda: draw(2, 6, 5),
    ),
    "length first": (
        lambda: Encoder(layer(batch_first=False), batch_first=False),
        lambda: draw(6, 2, 5),
    ),
    "without bias": (lambda: Encoder(layer(bias=False)), lambda: draw(2, 6, 5)),
    "encoder stack": (lambda: Encoder(nn.TransformerEncoder(layer(), 2)), lambda: draw(2, 6, 5)),
    "translator": (Translator, lambda: (draw(2, 6, 5), draw(2, 4, 5, seed=2))),
    "text block": (TextBlock, lambda: draw(6, 2, 5)),
    "shared attention": (SharedAttention, lambda: draw(2, 6, 5)),
    "other widths": (OtherWidths, lambda: draw(2, 6, 5)),
    "more keys": (MoreKeys, lambda: draw(2, 6, 5)),
    "vit": (small_vit, lambda: draw(2, 3, 16, 16)),
}


def build(name: str) -> tuple[Any, Any]:
    """Return a net with random values and its inputs."""
    make, inputs = NETS[name]
    return randomise_(make(), seed=0).double().eval(), inputs()
