"""Camera and road: where a point of the road appears, and what road point a pixel sees.

World axes are those of the camera: ``x`` to the right, ``y`` up from the road under the camera,
``z`` forward, all in metres. The camera has no roll, so all pixels of an image row that see the
ground see it at one distance ``z``. That makes ray casting a table over rows instead of a search
per pixel, also on hills. Road coordinates are ``(s, z)``: metres to the right of the middle of the
camera's own lane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from taskprune.driving.data.scenes.noise import Floats

Numbers: TypeAlias = NDArray[np.floating[Any]] | float

FARTHEST = 220.0
"""Distance in metres where the road model ends."""

_DISTANCES = np.geomspace(1.2, FARTHEST, 400)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with square pixels and no roll.

    Attributes:
        focal: Focal length in image widths.
        horizon: Row of the horizon of flat ground in image heights, from the top.
        height: Metres above the road.
    """

    focal: float
    horizon: float
    height: float


@dataclass(frozen=True)
class Course:
    """The line of the road ahead: where the middle of the own lane lies and how high.

    Attributes:
        offset: Metres the camera stands right of the middle of its lane.
        heading: Slope ``dx/dz`` of the road at the camera.
        curvature: 1/m.
        curvature_rate: Change of curvature, 1/m^2.
        hill: Height in metres of a wave along the road; negative is a dip.
        hill_length: Wavelength of that wave in metres.
    """

    offset: float
    heading: float
    curvature: float
    curvature_rate: float
    hill: float
    hill_length: float

    def centre(self, z: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Return ``x`` of the middle of the own lane at distance ``z``."""
        z = np.asarray(z, dtype=np.float64)
        bend = self.curvature / 2 + self.curvature_rate * np.minimum(z, 90.0) / 6
        return -self.offset + z * (self.heading + z * bend)

    def slope(self, z: float) -> float:
        """Return ``dx/dz`` of the lane at distance ``z``."""
        return float(self.centre(z + 0.5) - self.centre(z - 0.5))

    def elevation(self, z: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Return the height ``y`` of the road at distance ``z``."""
        return np.asarray(
            self.hill / 2 * (1 - np.cos(2 * np.pi * np.asarray(z) / self.hill_length))
        )


class View:
    """A camera over a course at one image size, with the row tables of the ground.

    Attributes:
        width: Pixels.
        height: Pixels.
        focal: Pixels.
        top: First image row that sees the ground; the tables below start there.
        distance: ``z`` at the middle of each ground row. Shape ``[R]``.
        near: ``z`` at the lower border of each ground row. Shape ``[R]``.
        far: ``z`` at the upper border of each ground row. Shape ``[R]``.
        metres: Metres on the ground across one pixel. Shape ``[R]``.
        lateral: Road coordinate ``s`` of every ground pixel. Shape ``[R, width]``.
    """

    def __init__(self, camera: Camera, course: Course, *, size: tuple[int, int]) -> None:
        self.camera, self.course = camera, course
        self.width, self.height = size
        self.focal = camera.focal * self.width
        rows = self.row(_DISTANCES, course.elevation(_DISTANCES))
        # Farther ground is hidden wherever something nearer already reaches higher.
        reach = np.minimum.accumulate(rows)
        self.top = min(max(0, int(np.ceil(reach[-1]))), self.height - 1)
        borders = np.arange(self.top, self.height + 0.75, 0.5)  # borders and middles of rows
        z = np.interp(borders, reach[::-1], _DISTANCES[::-1])
        self.near = z[2::2].astype(np.float32)
        self.far = np.maximum(z[:-1:2][: len(self.near)], z[2::2] + 1e-3).astype(np.float32)
        self.distance = z[1::2][: len(self.near)].astype(np.float32)
        self.metres = self.distance / np.float32(self.focal)
        columns = np.arange(self.width, dtype=np.float32) + np.float32(0.5 - self.width / 2)
        centre = course.centre(self.distance.astype(np.float64)).astype(np.float32)
        self.lateral: Floats = np.multiply.outer(self.metres, columns) - centre[:, None]

    def row(self, z: Numbers, y: Numbers) -> NDArray[np.float64]:
        """Return the (fractional) image row of points at distance ``z`` and height ``y``."""
        horizon = self.camera.horizon * self.height
        return np.asarray(horizon + self.focal * (self.camera.height - np.asarray(y)) / z)

    def column(self, z: Numbers, x: Numbers) -> NDArray[np.float64]:
        """Return the (fractional) image column of points at distance ``z``, ``x`` to the right."""
        return np.asarray(self.width / 2 + self.focal * np.asarray(x) / z)

    def wall(self, s: float) -> NDArray[np.float64]:
        """Return for each column the distance of an upright wall along the road at ``s``.

        A wall on the inside of a bend hides what lies behind it, so the nearest hit counts. Shape
        ``[width]``; infinite where the column misses the wall.
        """
        side = 1.0 if s > 0 else -1.0
        columns = side * self.column(_DISTANCES, self.course.centre(_DISTANCES) + s)
        inward = np.minimum.accumulate(columns)
        wanted = side * (np.arange(self.width) + 0.5)
        z = np.interp(wanted, inward[::-1], _DISTANCES[::-1])
        return np.where(wanted < inward[-1], np.inf, z)
