"""Hybrid encoder: attention inside the coarsest map, then fusion across the three scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskprune.driving.nets.attention import MultiHeadAttention, SinePosition
from taskprune.driving.nets.config import NetConfig
from taskprune.driving.nets.conv import ConvUnit, RepC3


class AIFI(nn.Module):
    """Attention-based intra-scale feature interaction: one post-norm transformer layer on a map.

    Positions are added to queries and keys only. Shape: ``[B, C, H, W] -> [B, C, H, W]``.
    """

    def __init__(self, channels: int, *, num_heads: int, ffn: int) -> None:
        super().__init__()
        self.position = SinePosition(channels)
        self.attention = MultiHeadAttention(channels, num_heads)
        self.norm1 = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, ffn)
        self.contract = nn.Linear(ffn, channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        tokens: Tensor = x.flatten(2).transpose(1, 2)
        placed = tokens + self.position(height, width).to(tokens.dtype)
        tokens = self.norm1(tokens + self.attention(placed, placed, tokens))
        tokens = self.norm2(tokens + self.contract(F.gelu(self.expand(tokens))))
        return tokens.transpose(1, 2).reshape(x.shape[0], -1, height, width)


class HybridEncoder(nn.Module):
    """Projects the backbone's maps to one width, then fuses them top-down and bottom-up.

    Shape: three maps of strides 8, 16, 32 in, three maps of width ``hidden`` out.

    References:
        Zhao et al., *DETRs Beat YOLOs on Real-time Object Detection*, CVPR 2024.
    """

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.project = nn.ModuleList(
            ConvUnit(stage.out, hidden, act="none") for stage in config.stages[1:]
        )
        self.aifi = AIFI(hidden, num_heads=config.attention_heads, ffn=config.encoder_ffn)
        self.lateral5 = ConvUnit(hidden, hidden)
        self.lateral4 = ConvUnit(hidden, hidden)
        self.top_down4 = RepC3(2 * hidden, hidden, n_convs=config.rep_convs)
        self.top_down3 = RepC3(2 * hidden, hidden, n_convs=config.rep_convs)
        self.down3 = ConvUnit(hidden, hidden, kernel=3, stride=2)
        self.down4 = ConvUnit(hidden, hidden, kernel=3, stride=2)
        self.bottom_up4 = RepC3(2 * hidden, hidden, n_convs=config.rep_convs)
        self.bottom_up5 = RepC3(2 * hidden, hidden, n_convs=config.rep_convs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        s3, s4, s5 = (project(x) for project, x in zip(self.project, maps, strict=True))
        y5 = self.lateral5(self.aifi(s5))
        y4 = self.lateral4(self.top_down4(torch.cat((_doubled(y5), s4), dim=1)))
        f3 = self.top_down3(torch.cat((_doubled(y4), s3), dim=1))
        f4 = self.bottom_up4(torch.cat((self.down3(f3), y4), dim=1))
        f5 = self.bottom_up5(torch.cat((self.down4(f4), y5), dim=1))
        return [f3, f4, f5]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
