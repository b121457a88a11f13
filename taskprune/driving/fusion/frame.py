"""One moment seen by a camera and a LiDAR, and how such frames become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskprune.driving.batch import on_device
from taskprune.driving.fusion.grid import BevGrid
from taskprune.errors import InputError

LEVELS = ("easy", "moderate", "hard")
MIN_HEIGHT = (40.0, 25.0, 25.0)
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.30, 0.50)
"""Limits of the levels: pixels in a picture 375 high, occlusion level, part outside of it."""

BEYOND = len(LEVELS)
"""What keeps no level's limits: it counts neither when found nor when missed."""


def difficulty(height: float, occlusion: int, truncation: float) -> int:
    """Return 0 easy, 1 moderate, 2 hard, 3 beyond: the first level whose limits are kept.

    Args:
        height: Of the rectangle around the object, in pixels.
        occlusion: 0 visible, 1 partly hidden, 2 largely hidden, 3 unknown.
        truncation: Part outside of the picture, 0 to 1.
    """
    for level in range(BEYOND):
        if (
            height >= MIN_HEIGHT[level]
            and occlusion <= MAX_OCCLUSION[level]
            and truncation <= MAX_TRUNCATION[level]
        ):
            return level
    return BEYOND


CLASSES = ("Car", "Pedestrian")
"""The kinds of objects, in the order of their class numbers."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FusionFrame:
    """One labelled moment. The LiDAR frame has x forwards, y to the left, z up, in metres.

    Attributes:
        image: RGB. Shape ``[3, H, W]``, uint8.
        points: x, y, z, reflectance in 0..1. Shape ``[N, 4]``, float32.
        projection: From homogeneous LiDAR coordinates to homogeneous pixels of this image. Shape
            ``[3, 4]``, float32.
        boxes: Centre x, y, z, length, width, height, yaw about z. Shape ``[n, 7]``, float32.
        labels: Class numbers into :data:`CLASSES`; -1 marks what counts neither as found nor as
            invented. Shape ``[n]``, int64.
        difficulty: 0 easy, 1 moderate, 2 hard, 3 beyond, by KITTI's rules. Shape ``[n]``, int64.
        drivable: 1 where the road can be driven on, on the BEV grid. Shape ``[X, Y]``, uint8;
            ``None`` without labels.
    """

    image: Tensor
    points: Tensor
    projection: Tensor
    boxes: Tensor
    labels: Tensor
    difficulty: Tensor
    drivable: Tensor | None = None


@dataclass(frozen=True, eq=False)
class FusionBatch:
    """Frames side by side.

    Attributes:
        images: RGB in 0..1. Shape ``[B, 3, H, W]``, float32.
        points: Shape ``[B, P, 4]``, float32; frames with fewer points are filled up with points
            outside of every grid.
        projection: Shape ``[B, 3, 4]``, float32.
        boxes: Per frame ``[n_i, 7]``.
        labels: Per frame ``[n_i]``.
        difficulty: Per frame ``[n_i]``.
        drivable: Shape ``[B, X, Y]``, float32, or ``None``.
    """

    images: Tensor
    points: Tensor
    projection: Tensor
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    difficulty: tuple[Tensor, ...]
    drivable: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> FusionBatch:
        """Return the batch on another device."""
        return on_device(self, device)


FAR_AWAY = -1e4
"""Coordinate of points that only fill up a batch: outside of every grid."""


def collate_frames(frames: Sequence[FusionFrame], *, n_points: int, grid: BevGrid) -> FusionBatch:
    """Stack frames into a batch.

    Points outside of the grid are left out. Of a frame with more than ``n_points`` inside, every
    k-th is kept, so that the result does not depend on any random state.

    Raises:
        InputError: There are no frames, image sizes differ, or only some have drivable labels.
    """
    if not frames:
        raise InputError("`collate_frames` needs at least one frame. Found none.")
    sizes = sorted({tuple(frame.image.shape[-2:]) for frame in frames})
    if len(sizes) > 1:
        raise InputError(
            f"`collate_frames` needs images of one size. Found (height, width) {sizes}. Give the "
            "reader a `size`."
        )
    drivable = [frame.drivable for frame in frames if frame.drivable is not None]
    if drivable and len(drivable) < len(frames):
        raise InputError(
            "`collate_frames` needs drivable labels on all frames or on none. Found them on "
            f"{len(drivable)} of {len(frames)}."
        )
    return FusionBatch(
        images=torch.stack([frame.image for frame in frames]).float().div_(255),
        points=torch.stack([_sampled(frame.points, n_points, grid) for frame in frames]),
        projection=torch.stack([frame.projection for frame in frames]),
        boxes=tuple(frame.boxes for frame in frames),
        labels=tuple(frame.labels for frame in frames),
        difficulty=tuple(frame.difficulty for frame in frames),
        drivable=torch.stack(drivable).float() if drivable else None,
    )


def _sampled(points: Tensor, n_points: int, grid: BevGrid) -> Tensor:
    inside = points[grid.contains(points)]
    if len(inside) > n_points:
        picked = torch.linspace(0, len(inside) - 1, n_points, dtype=torch.float64).round().long()
        return inside[picked]
    filled = torch.full((n_points, 4), FAR_AWAY)
    filled[: len(inside)] = inside
    return filled
