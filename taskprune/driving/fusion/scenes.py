"""A data set of made-up two-sensor scenes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from taskprune.driving.fusion.calibration import Calibration
from taskprune.driving.fusion.frame import FusionFrame, difficulty
from taskprune.driving.fusion.grid import BevGrid
from taskprune.driving.fusion.sensors import (
    KITTI_SIZE,
    Degradation,
    calibration_of,
    photograph,
    scan,
)
from taskprune.driving.fusion.world import World, make_world
from taskprune.errors import InputError

SIZE = (320, 96)
"""Width and height of the pictures: KITTI's view, a quarter of its resolution."""

VISIBLE = (0.9, 0.5, 0.15)
"""Visible parts of an object from which it is not, only partly, and only largely occluded."""

FloatArray = NDArray[np.float64]


class TwoSensorScenes(Dataset[FusionFrame]):
    """Scenes seen by a camera and a LiDAR; frame ``i`` follows from ``(seed, i)`` alone.

    Args:
        n: How many.
        seed: Determines all of them.
        size: Width and height of the pictures.
        grid: Where the drivable area is labelled.
        degradation: How bad the sensors are. The scenes, their labels and what the other sensor
            measures stay the same.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int,
        size: tuple[int, int] = SIZE,
        grid: BevGrid | None = None,
        degradation: Degradation | None = None,
    ) -> None:
        if n < 1 or seed < 0:
            raise InputError(f"Expected n >= 1 scenes and a seed >= 0. Found {n} and {seed}.")
        self.n, self.seed, self.size = n, seed, size
        self.grid = grid or BevGrid()
        self.degradation = degradation or Degradation()
        self.calibration = calibration_of(size)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: int) -> FusionFrame:
        """Make one frame."""
        if not 0 <= number < self.n:
            raise IndexError(number)
        # Each sensor has a generator of its own, so that degrading one leaves the other alone.
        world = make_world(np.random.default_rng((self.seed, number, 0)))
        points = scan(
            world,
            np.random.default_rng((self.seed, number, 1)),
            degraded=self.degradation.lidar,
        )
        picture, visible = photograph(
            world,
            np.random.default_rng((self.seed, number, 2)),
            size=self.size,
            degraded=self.degradation.camera,
        )
        cells = self.grid.centres().double().numpy()
        drivable = world.on_road(cells.reshape(-1, 2)).reshape(cells.shape[:2])
        return FusionFrame(
            image=torch.from_numpy(picture),
            points=torch.from_numpy(points),
            projection=torch.from_numpy(self.calibration.projection).float(),
            boxes=torch.from_numpy(world.boxes).float(),
            labels=torch.from_numpy(world.labels),
            difficulty=torch.from_numpy(_levels(world, visible, self.calibration, self.size)),
            drivable=torch.from_numpy(drivable.astype(np.uint8)),
        )


def corners(boxes: FloatArray) -> FloatArray:
    """Return the eight corners of each box. Shape ``[n, 7] -> [n, 8, 3]``."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    local = signs[None] * boxes[:, None, 3:6] / 2
    cos, sin = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
    turned = np.stack(
        (
            cos * local[..., 0] - sin * local[..., 1],
            sin * local[..., 0] + cos * local[..., 1],
            local[..., 2],
        ),
        axis=-1,
    )
    return turned + boxes[:, None, :3]


def _levels(
    world: World, visible: FloatArray, calibration: Calibration, size: tuple[int, int]
) -> NDArray[np.int64]:
    """Judge objects by the parts hidden and outside, as if the picture had KITTI's resolution."""
    if not len(world.boxes):
        return np.zeros(0, dtype=np.int64)
    flat = corners(world.boxes).reshape(-1, 3)
    seen = np.c_[flat, np.ones(len(flat))] @ calibration.projection.T
    depth = seen[:, 2].reshape(-1, 8)
    pixels = (seen[:, :2] / seen[:, 2:].clip(0.1)).reshape(-1, 8, 2)
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    limit = np.array(size, dtype=np.float64)
    inside = (np.minimum(high, limit) - np.maximum(low, 0)).clip(0)
    truncation = 1 - inside.prod(axis=1) / (high - low).prod(axis=1).clip(1e-6)
    truncation[depth.min(axis=1) <= 0.5] = 1.0
    height = inside[:, 1] * KITTI_SIZE[1] / size[1]
    occlusion = (visible[:, None] < np.array(VISIBLE)).sum(axis=1)
    objects = zip(height.tolist(), occlusion.tolist(), truncation.tolist(), strict=True)
    return np.array([difficulty(*each) for each in objects], dtype=np.int64)
