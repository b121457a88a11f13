"""The LiDAR branch: points to pillars to a map of the ground."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskprune.driving.fusion.grid import BevGrid
from taskprune.driving.nets.conv import ConvUnit


class PillarEncoder(nn.Module):
    """A small network on each point, then the maximum over the points of every cell.

    A point is described by its coordinates, its reflectance, and where it lies from the middle of
    its cell. Points outside of the grid go to a spare cell that is dropped.

    Shape: points ``[B, P, 4] -> [B, C, X, Y]``.

    References:
        Lang et al., *PointPillars: Fast Encoders for Object Detection from Point Clouds*, CVPR
        2019. Points are not grouped into a fixed number per pillar first; the maximum is scattered.
    """

    def __init__(self, grid: BevGrid, channels: int) -> None:
        super().__init__()
        self.grid = grid
        self.point = nn.Linear(6, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, points: Tensor) -> Tensor:
        rows, columns = self.grid.shape
        place = self.grid.position(points)  # [B, P, 2]
        cell = place.floor()
        beside = place - cell - 0.5
        scale = points.new_tensor((0.05, 0.05, 0.5, 1.0))
        described = torch.cat((points.clamp(-100, 100) * scale, beside.clamp(-1, 1)), dim=2)
        features = F.relu(self.norm(self.point(described).transpose(1, 2)))  # [B, C, P]
        inside = self.grid.contains(points)
        spare = rows * columns
        number = (cell[..., 0] * columns + cell[..., 1]).clamp(0, spare - 1).long()
        number = torch.where(inside, number, torch.full_like(number, spare))
        # Activations are not negative, so an empty cell's zero is no maximum of its own.
        empty = features.new_zeros(features.shape[0], features.shape[1], spare + 1)
        index = number.unsqueeze(1).expand(-1, features.shape[1], -1)
        cells = empty.scatter_reduce(2, index, features, reduce="amax")
        kept = cells[..., :spare]
        return kept.reshape(*kept.shape[:2], rows, columns)


class GroundBackbone(nn.Module):
    """Three stages at 1, 1/2 and 1/4 of the grid, brought together at 1.

    Shape: ``[B, C, X, Y] -> [B, 3 out, X, Y]``.

    References:
        Lang et al., *PointPillars*, CVPR 2019, section 2.2.
    """

    def __init__(self, widths: tuple[int, int, int], depth: int, out: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        self.up = nn.ModuleList()
        before = widths[0]
        for number, width in enumerate(widths):
            stride = 1 if number == 0 else 2
            convs = [ConvUnit(before, width, kernel=3, stride=stride, act="relu")]
            convs += [ConvUnit(width, width, kernel=3, act="relu") for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*convs))
            self.up.append(ConvUnit(width, out, act="relu"))
            before = width

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        maps = []
        for stage, up in zip(self.stages, self.up, strict=True):
            x = stage(x)
            y = up(x)
            maps.append(y if y.shape[2:] == size else F.interpolate(y, size=size, mode="bilinear"))
        return torch.cat(maps, dim=1)


class LidarBranch(nn.Module):
    """Points to a map of the ground.

    Shape: ``[B, P, 4] -> [B, 3 out, X, Y]``.
    """

    def __init__(
        self, grid: BevGrid, widths: tuple[int, int, int], *, depth: int, out: int
    ) -> None:
        super().__init__()
        self.pillars = PillarEncoder(grid, widths[0])
        self.backbone = GroundBackbone(widths, depth, out)

    def forward(self, points: Tensor) -> Tensor:
        y: Tensor = self.backbone(self.pillars(points))
        return y
