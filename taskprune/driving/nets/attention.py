"""Multi-head attention with one linear layer a role, and sine positions as prunable buffers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
    """Softmax attention; as many parameters as `torch.nn.MultiheadAttention`.

    Query, key, value and output are separate layers and the head width is read off their outputs,
    so heads or head width can shrink. The score scale is kept as a number: it belongs to the
    trained function and must not follow a narrower head.

    Shape: queries ``[B, N, C]``, keys and values ``[B, M, C]``, result ``[B, N, C]``.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = 1.0 / math.sqrt(channels // num_heads)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.out.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        """Attend; ``mask`` ``[N, M]`` is True where a query may look."""
        mixed = F.scaled_dot_product_attention(
            self._split(self.query(query)),
            self._split(self.key(key)),
            self._split(self.value(value)),
            attn_mask=mask,
            scale=self.scale,
        )
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return y


class SinePosition(nn.Module):
    r"""2-D sine positions for any grid size: ``pos[n, c] = sin(x_n fx_c + y_n fy_c + phase_c)``.

    The textbook code ``[sin x w, cos x w, sin y w, cos y w]`` with ``w_i = T^(-i / (C/4))``, where
    the cosine is a sine with phase pi/2. The frequencies belong to the channels: a pruned net
    keeps those of the channels it keeps, whereas recomputing them from a smaller C would change
    the values.
    """

    frequency_x: Tensor
    frequency_y: Tensor
    phase: Tensor

    def __init__(self, channels: int, *, temperature: float = 10_000.0) -> None:
        super().__init__()
        quarter = channels // 4
        omega = temperature ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        zero = torch.zeros_like(omega)
        half_pi = torch.full_like(omega, math.pi / 2)
        self.register_buffer("frequency_x", torch.cat((omega, omega, zero, zero)).float())
        self.register_buffer("frequency_y", torch.cat((zero, zero, omega, omega)).float())
        self.register_buffer("phase", torch.cat((zero, half_pi, zero, half_pi)).float())

    def forward(self, height: int, width: int) -> Tensor:
        """Return positions of a grid, row by row. Shape ``[height * width, C]``."""
        like = self.phase
        y = torch.arange(height, dtype=like.dtype, device=like.device).view(-1, 1, 1)
        x = torch.arange(width, dtype=like.dtype, device=like.device).view(1, -1, 1)
        return torch.sin(x * self.frequency_x + y * self.frequency_y + self.phase).flatten(0, 1)
