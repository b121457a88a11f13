"""Made-up scenes: a curved road, cars and pedestrians, drawn from one generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskprune.driving.fusion.frame import CLASSES

FloatArray = NDArray[np.float64]

GROUND_HEIGHT = -1.73
"""Of the road below the LiDAR, in metres, as on KITTI's car."""

SIZES = {"Car": (4.0, 1.65, 1.55), "Pedestrian": (0.8, 0.65, 1.75)}
"""Mean length, width and height; single objects differ by a tenth."""

FORWARD, SIDE = (6.0, 44.0), 15.0
"""Where objects stand, in metres."""


@dataclass(frozen=True, eq=False)
class World:
    """Everything there is in one scene.

    Attributes:
        boxes: Centre, length, width, height, yaw. Shape ``[n, 7]``.
        labels: Class numbers. Shape ``[n]``.
        colours: RGB in 0..1 of each object. Shape ``[n, 3]``.
        road: Offset, slope, curvature and half width of the road:
            ``|y - (offset + slope x + curvature x²)| < half width``.
        sky: RGB in 0..1.
        grass: RGB in 0..1 beside the road.
        asphalt: Brightness of the road.
    """

    boxes: FloatArray
    labels: NDArray[np.int64]
    colours: FloatArray
    road: tuple[float, float, float, float]
    sky: FloatArray
    grass: FloatArray
    asphalt: float

    def from_middle(self, places: FloatArray) -> FloatArray:
        """Return how far to the left of the road's middle each place lies. ``[n, 2] -> [n]``."""
        x, y = places[:, 0], places[:, 1]
        offset, slope, curvature, _ = self.road
        beside: FloatArray = y - (offset + slope * x + curvature * x**2)
        return beside

    def on_road(self, places: FloatArray) -> NDArray[np.bool_]:
        """Return which places lie on the road. Shape ``[n, 2] -> [n]``."""
        return np.abs(self.from_middle(places)) < self.road[3]

    def ground_colour(self, places: FloatArray) -> FloatArray:
        """Return the RGB of the ground. Shape ``[n, 2] -> [n, 3]``."""
        beside = self.from_middle(places)
        colour = np.where(
            (np.abs(beside) < self.road[3])[:, None], np.full(3, self.asphalt), self.grass
        )
        # A grain that stays where it is, and dashes along the middle.
        grain = np.sin(places[:, 0] * 7.3) * np.sin(places[:, 1] * 9.1)
        dashes = (np.abs(beside) < 0.12) & (places[:, 0] % 6 < 3)
        shaded: FloatArray = np.where(dashes[:, None], 0.9, colour * (1 + 0.06 * grain[:, None]))
        return shaded


def make_world(rng: np.random.Generator) -> World:
    """Draw a scene: three to nine objects that do not touch, most cars along the road."""
    road = (
        rng.uniform(-2, 2),
        rng.uniform(-0.12, 0.12),
        rng.uniform(-4e-3, 4e-3),
        rng.uniform(3.5, 6.5),
    )
    boxes: list[FloatArray] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(3, 10))):
        label = int(rng.random() < 0.3)
        for _attempt in range(20):
            box = _place(rng, CLASSES[label], road)
            if all(_apart(box, other) for other in boxes):
                boxes.append(box)
                labels.append(label)
                break
    return World(
        boxes=np.array(boxes).reshape(-1, 7),
        labels=np.array(labels, dtype=np.int64),
        colours=rng.uniform(0.1, 1.0, (len(boxes), 3)),
        road=road,
        sky=np.array([0.55, 0.7, 0.9]) * rng.uniform(0.7, 1.1),
        grass=np.array([0.25, 0.42, 0.2]) * rng.uniform(0.6, 1.3),
        asphalt=float(rng.uniform(0.28, 0.45)),
    )


def _place(
    rng: np.random.Generator, kind: str, road: tuple[float, float, float, float]
) -> FloatArray:
    size = np.array(SIZES[kind]) * rng.uniform(0.9, 1.1, 3)
    x = rng.uniform(*FORWARD)
    middle = road[0] + road[1] * x + road[2] * x**2
    along = np.arctan(road[1] + 2 * road[2] * x)
    if kind == "Car" and rng.random() < 0.75:
        y = middle + rng.uniform(-1, 1) * road[3]
        yaw = along + rng.normal(0, 0.08) + np.pi * (rng.random() < 0.5)
    else:
        y, yaw = rng.uniform(-SIDE, SIDE), rng.uniform(-np.pi, np.pi)
    z = GROUND_HEIGHT + size[2] / 2
    yaw = (yaw + np.pi) % (2 * np.pi) - np.pi
    return np.array([x, y, z, *size, yaw])


def _apart(box: FloatArray, other: FloatArray) -> bool:
    reach = (np.hypot(*box[3:5]) + np.hypot(*other[3:5])) / 2
    return bool(np.hypot(*(box[:2] - other[:2])) > reach)
