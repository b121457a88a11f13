"""Multi-scale deformable attention by bilinear sampling, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Each query reads a few learned places around its box on every level.

    Shape: queries ``[B, Q, C]``, reference boxes ``[B, Q, 4]`` (cx, cy, w, h in 0..1), memory
    ``[B, L, C]`` with ``L`` the sum of all levels' cells; result ``[B, Q, C]``.

    References:
        Zhu et al., *Deformable DETR*, ICLR 2021, equation 3 and box references of appendix A.4.
    """

    def __init__(self, channels: int, *, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        # Offsets are in units of half a box, shared out over the points of a level.
        self.offset_scale = 0.5 / num_points
        self.offsets = nn.Linear(channels, num_heads * num_levels * num_points * 2)
        self.weights = nn.Linear(channels, num_heads * num_levels * num_points)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Let head k look in direction k, its points at growing distance, all weights equal."""
        angle = torch.arange(self.num_heads) * (2.0 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        distance = torch.arange(1.0, self.num_points + 1)
        grid = direction[:, None, None, :] * distance[None, None, :, None]
        nn.init.zeros_(self.offsets.weight)
        self.offsets.bias.copy_(grid.expand(-1, self.num_levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query: Tensor, reference: Tensor, memory: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Attend; ``sizes`` are the levels' (height, width), in the order of ``memory``."""
        batch, n_queries = query.shape[0], query.shape[1]
        offsets = self.offsets(query).view(
            batch, n_queries, self.num_heads, self.num_levels, self.num_points, 2
        )
        box = reference[:, :, None, None, None, :]
        places = box[..., :2] + offsets * (box[..., 2:] * self.offset_scale)
        # grid_sample counts from -1 to 1; heads go into the batch: [B * heads, Q, levels, P, 2]
        grid = (2.0 * places - 1.0).transpose(1, 2).flatten(0, 1)

        weights = self.weights(query).view(batch, n_queries, self.num_heads, -1).softmax(dim=-1)
        weights = (
            weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)
        )  # [B * heads, 1, Q, levels * P]

        value = self.value(memory).view(batch, memory.shape[1], self.num_heads, -1)
        value = value.permute(0, 2, 3, 1).flatten(0, 1).to(grid.dtype)  # [B * heads, width, L]
        levels = value.split([height * width for height, width in sizes], dim=2)
        samples = [
            F.grid_sample(
                level.view(level.shape[0], level.shape[1], height, width),
                grid[:, :, number],
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )
            for number, (level, (height, width)) in enumerate(zip(levels, sizes, strict=True))
        ]
        read = (torch.cat(samples, dim=-1) * weights).sum(dim=-1)  # [B * heads, width, Q]
        y: Tensor = self.out(read.view(batch, -1, n_queries).transpose(1, 2).to(query.dtype))
        return y
