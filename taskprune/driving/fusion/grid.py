"""The bird's-eye-view grid that both sensors are brought onto."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taskprune.errors import InputError


@dataclass(frozen=True)
class BevGrid:
    """Cells on the ground in front of the car, rows forwards (x), columns to the left (y).

    Attributes:
        forward: Smallest and largest x in metres.
        side: Smallest and largest y in metres.
        height: Smallest and largest z in metres that count.
        cell: Edge of a cell in metres; divides both ranges.
    """

    forward: tuple[float, float] = (0.0, 48.0)
    side: tuple[float, float] = (-24.0, 24.0)
    height: tuple[float, float] = (-3.0, 1.0)
    cell: float = 0.75

    def __post_init__(self) -> None:
        for low, high in (self.forward, self.side):
            if abs((high - low) / self.cell - round((high - low) / self.cell)) > 1e-6:
                raise InputError(
                    f"`BevGrid.cell` must divide the ranges. Found {self.cell} m for "
                    f"{low} to {high} m."
                )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (
            round((self.forward[1] - self.forward[0]) / self.cell),
            round((self.side[1] - self.side[0]) / self.cell),
        )

    def contains(self, points: Tensor) -> Tensor:
        """Return which points lie inside. Shape ``[..., 3 or more] -> [...]``, bool."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        return (
            (x >= self.forward[0])
            & (x < self.forward[1])
            & (y >= self.side[0])
            & (y < self.side[1])
            & (z >= self.height[0])
            & (z < self.height[1])
        )

    def position(self, points: Tensor) -> Tensor:
        """Return row and column as fractions of cells. Shape ``[..., 3 or more] -> [..., 2]``."""
        origin = points.new_tensor((self.forward[0], self.side[0]))
        return (points[..., :2] - origin) / self.cell

    def centres(self) -> Tensor:
        """Return x and y of every cell's centre. Shape ``[X, Y, 2]``, float32."""
        rows, columns = self.shape
        x = self.forward[0] + (torch.arange(rows) + 0.5) * self.cell
        y = self.side[0] + (torch.arange(columns) + 0.5) * self.cell
        return torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1)
