"""The camera branch: a picture to features, and features to a map of the ground."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskprune.driving.fusion.grid import BevGrid
from taskprune.driving.nets.conv import ConvUnit

STRIDE = 4
"""Pixels per cell of the picture's features."""


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = ConvUnit(before, after, kernel=3, stride=stride, act="relu")
        self.second = ConvUnit(after, after, kernel=3, act="none")
        self.shortcut = (
            ConvUnit(before, after, stride=stride, act="none")
            if stride > 1 or before != after
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class CameraBranch(nn.Module):
    """A residual backbone and a feature pyramid whose finest level comes out.

    Shape: ``[B, 3, H, W] -> [B, out, H / 4, W / 4]``.

    References:
        He et al., *Deep Residual Learning*, CVPR 2016; Lin et al., *Feature Pyramid Networks*, CVPR
        2017.
    """

    def __init__(self, widths: tuple[int, ...], *, depth: int, out: int) -> None:
        super().__init__()
        self.stem = ConvUnit(3, widths[0], kernel=3, stride=2, act="relu")
        self.stages = nn.ModuleList(
            nn.Sequential(
                Residual(before, after, 2), *(Residual(after, after, 1) for _ in range(depth - 1))
            )
            for before, after in pairwise(widths)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, out, 1) for width in widths[1:])
        self.smooth = ConvUnit(out, out, kernel=3, act="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        top: Tensor | None = None
        for lateral, x in zip(reversed(self.lateral), reversed(maps), strict=True):
            y = lateral(x)
            top = y if top is None else y + F.interpolate(top, size=y.shape[2:])
        assert top is not None
        smoothed: Tensor = self.smooth(top)
        return smoothed


class GroundView(nn.Module):
    """Looks up, for every cell of the ground at several heights, what the picture shows there.

    The calibration of each frame says where; cells that the camera does not see stay zero. The
    heights' features lie side by side, so that a convolution can tell what stands from what lies.

    Shape: features ``[B, C, h, w]`` and projection ``[B, 3, 4] -> [B, C Z, X, Y]``.

    References:
        Harley et al., *Simple-BEV: What Really Matters for Multi-Sensor BEV Perception?*, ICRA
        2023 (bilinear lookup in place of a depth distribution).
    """

    places: Tensor

    def __init__(self, grid: BevGrid, heights: tuple[float, ...]) -> None:
        super().__init__()
        self.heights = len(heights)
        rows, columns = grid.shape
        ground = grid.centres().view(1, rows, columns, 2).expand(len(heights), -1, -1, -1)
        level = torch.tensor(heights).view(-1, 1, 1, 1).expand(-1, rows, columns, 1)
        places = torch.cat((ground, level, torch.ones_like(level)), dim=3)
        self.register_buffer("places", places.reshape(-1, 4), persistent=False)
        self.rows, self.columns = rows, columns

    def forward(self, features: Tensor, projection: Tensor) -> Tensor:
        seen = self.places @ projection.transpose(1, 2)  # [B, Z X Y, 3]
        depth = seen[..., 2:]
        pixels = seen[..., :2] / depth.clamp_min(0.1)
        size = features.new_tensor((features.shape[3], features.shape[2])) * STRIDE
        where = 2 * pixels / size - 1
        # Behind the camera is nowhere in the picture.
        where = torch.where(depth > 0.1, where, torch.full_like(where, 2.0))
        where = where.clamp(-2, 2).reshape(-1, self.heights * self.rows, self.columns, 2)
        looked_up = F.grid_sample(features, where, align_corners=False)  # [B, C, Z X, Y]
        # Height and row share a dim: the heights go side by side into the channels.
        return looked_up.reshape(len(features), -1, self.rows, self.columns)
