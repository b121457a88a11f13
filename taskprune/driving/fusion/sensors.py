"""A LiDAR and a camera that look at a made-up scene, and what bad weather does to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskprune.driving.fusion.calibration import Calibration
from taskprune.driving.fusion.raycast import GROUND, SKY, Hits, cast
from taskprune.driving.fusion.world import GROUND_HEIGHT, World
from taskprune.errors import InputError

FloatArray = NDArray[np.float64]

N_BEAMS, ELEVATION = 40, (-24.0, 2.0)
AZIMUTH, AZIMUTH_STEP = 45.0, 0.6
"""Beams and their angles in degrees; only what lies in front is scanned."""

MAX_RANGE = 60.0
RANGE_NOISE = 0.02
DROPOUT = 0.05
"""Metres, standard deviation in metres, share of returns lost in good weather."""

KITTI_SIZE = (1242, 375)
CAMERA = np.array([[721.5, 0.0, 609.6, 44.9], [0.0, 721.5, 172.9, 0.2], [0.0, 0.0, 1.0, 0.003]])
MOUNT = np.array([[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, -0.08], [1.0, 0.0, 0.0, -0.27]])
"""A camera like KITTI's left colour camera, a little below and in front of the LiDAR."""

LIGHT = np.array([0.35, 0.45, 0.82])


@dataclass(frozen=True)
class Degradation:
    """How much worse than in good weather each sensor is: 0 not at all, 1 nearly blind.

    Attributes:
        camera: Darkness, noise and blur.
        lidar: Lost returns and a shorter range.
    """

    camera: float = 0.0
    lidar: float = 0.0

    def __post_init__(self) -> None:
        for name in ("camera", "lidar"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"`Degradation.{name}` must lie between 0 and 1. Found {getattr(self, name)!r}."
                )


def calibration_of(size: tuple[int, int]) -> Calibration:
    """Return the calibration of the made-up camera for images of this width and height."""
    rectified = np.eye(4)
    rectified[:3] = MOUNT
    full = Calibration(CAMERA, rectified)
    return full.resized(size[0] / KITTI_SIZE[0], size[1] / KITTI_SIZE[1])


def scan(world: World, rng: np.random.Generator, *, degraded: float) -> NDArray[np.float32]:
    """Return the points a LiDAR measures: x, y, z, reflectance. Shape ``[N, 4]``."""
    elevation = np.deg2rad(np.linspace(*ELEVATION, N_BEAMS))
    azimuth = np.deg2rad(np.arange(-AZIMUTH, AZIMUTH, AZIMUTH_STEP))
    up, around = (a.ravel() for a in np.meshgrid(elevation, azimuth, indexing="ij"))
    directions = np.c_[np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)]
    hits = cast(np.zeros(3), directions, world.boxes, GROUND_HEIGHT)
    noisy = hits.distance + rng.normal(0, RANGE_NOISE * (1 + 4 * degraded), len(up))
    reach = MAX_RANGE * (1 - 0.7 * degraded)
    lost = rng.random(len(up)) < DROPOUT + 0.8 * degraded
    seen = (hits.what != SKY) & (noisy < reach) & ~lost
    points = directions[seen] * noisy[seen, None]
    reflectance = _reflectance(world, hits)[seen] + rng.normal(0, 0.03, seen.sum())
    measured: NDArray[np.float32] = np.c_[points, reflectance.clip(0, 1)].astype(np.float32)
    return measured


def _reflectance(world: World, hits: Hits) -> FloatArray:
    on_road = world.on_road(hits.point[:, :2])
    value = np.where(on_road, 0.15, 0.45)
    for number, colour in enumerate(world.colours):
        value[hits.what == number] = 0.3 + 0.5 * colour.mean()
    return value


def photograph(
    world: World, rng: np.random.Generator, *, size: tuple[int, int], degraded: float
) -> tuple[NDArray[np.uint8], FloatArray]:
    """Return the picture a camera takes, and the part of each object that nothing hides.

    Shape: ``[3, H, W]`` and ``[n]``. What does not fit in the picture counts as hidden by nothing;
    an object wholly outside of it has no visible part.
    """
    calibration = calibration_of(size)
    width, height = size
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.c_[u.ravel(), v.ravel(), np.ones(u.size)]
    ahead = pixels @ np.linalg.inv(calibration.camera[:, :3]).T
    turned = ahead @ calibration.rectified[:3, :3]
    directions = turned / np.linalg.norm(turned, axis=1, keepdims=True)
    camera = calibration.camera
    behind: FloatArray = -np.asarray(np.linalg.solve(camera[:, :3], camera[:, 3]), np.float64)
    eye = calibration.to_lidar(behind[None])[0]
    hits = cast(eye, directions, world.boxes, GROUND_HEIGHT)
    colour = _colours(world, hits, directions, rng)
    picture = colour.reshape(height, width, 3)
    seen = np.bincount(hits.what[hits.what >= 0], minlength=len(world.boxes))
    return _weathered(picture, rng, degraded), seen / hits.reached.clip(1)


def _colours(
    world: World, hits: Hits, directions: FloatArray, rng: np.random.Generator
) -> FloatArray:
    colour = np.empty((len(directions), 3))
    sky = hits.what == SKY
    fade = directions[:, 2:].clip(0, 0.4) / 0.4
    colour[sky] = (world.sky * (1 - 0.3 * fade) + 0.3 * fade)[sky]
    ground = hits.what == GROUND
    colour[ground] = world.ground_colour(hits.point[ground, :2])
    for number, paint in enumerate(world.colours):
        own = hits.what == number
        shade = 0.45 + 0.55 * (hits.normal[own] @ LIGHT).clip(0, 1)
        colour[own] = paint * shade[:, None]
    haze = np.where(sky, 0, 1 - np.exp(-hits.distance.clip(max=200) / 120))[:, None]
    colour = colour * (1 - haze) + world.sky * haze
    grainy: FloatArray = colour + rng.normal(0, 0.02, colour.shape)
    return grainy


def _weathered(picture: FloatArray, rng: np.random.Generator, degraded: float) -> NDArray[np.uint8]:
    if degraded > 0:
        for axis in (0, 1):
            blurred = (np.roll(picture, 1, axis) + picture + np.roll(picture, -1, axis)) / 3
            picture = picture * (1 - degraded) + blurred * degraded
        picture = picture * (1 - 0.9 * degraded)
        picture = picture + rng.normal(0, 0.12 * degraded, picture.shape)
    pixels = (255 * picture).round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
