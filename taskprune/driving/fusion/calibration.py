"""KITTI's calibration files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskprune.driving.fusion.plain_text import numbers_in, read_lines
from taskprune.errors import DataError
from taskprune.files import write_text

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """How LiDAR, rectified camera and image lie to each other.

    Attributes:
        camera: From homogeneous rectified camera coordinates to pixels (``P2``). Shape ``[3, 4]``.
        rectified: From LiDAR coordinates to rectified camera coordinates, homogeneous: ``R0_rect``
            times ``Tr_velo_to_cam``. Shape ``[4, 4]``.
    """

    camera: FloatArray
    rectified: FloatArray

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read a file of ``calib/``.

        Raises:
            DataError: The file is missing or damaged, lacks a matrix, or its axes are no rotation.
        """
        found: dict[str, str] = {}
        for line in read_lines(path, "calibration"):
            name, colon, numbers = line.partition(":")
            if colon and name in found:
                raise DataError(f"Expected `{path}` to hold `{name}` once. Found it twice.")
            found[name] = numbers

        def matrix(name: str, shape: tuple[int, int]) -> FloatArray:
            try:
                numbers = numbers_in(found[name].split())
                return np.array(numbers, dtype=np.float64).reshape(shape)
            except (KeyError, ValueError) as error:
                raise DataError(
                    f"Expected `{path}` to hold `{name}` with {shape[0] * shape[1]} numbers. "
                    f"Found {found.get(name, 'no such line').strip()[:40]!r}."
                ) from error

        def rotation(name: str, axes: FloatArray) -> FloatArray:
            if np.abs(axes @ axes.T - np.eye(3)).max() > 0.01:
                raise DataError(
                    f"Expected `{path}` to hold a rotation in `{name}`. Found axes that are not at "
                    "right angles or not of length 1."
                )
            return axes

        rectifying, velodyne = np.eye(4), np.eye(4)
        rectifying[:3, :3] = rotation("R0_rect", matrix("R0_rect", (3, 3)))
        velodyne[:3] = matrix("Tr_velo_to_cam", (3, 4))
        rotation("Tr_velo_to_cam", velodyne[:3, :3])
        return cls(matrix("P2", (3, 4)), rectifying @ velodyne)

    def write(self, path: Path) -> None:
        """Write a file that :meth:`read` understands; ``R0_rect`` is the identity in it."""
        rows = {
            "P2": self.camera,
            "R0_rect": np.eye(3),
            "Tr_velo_to_cam": self.rectified[:3],
        }
        text = "".join(
            f"{name}: {' '.join(f'{x:.12e}' for x in values.ravel())}\n"
            for name, values in rows.items()
        )
        write_text(path, text)

    @property
    def projection(self) -> FloatArray:
        """From homogeneous LiDAR coordinates to homogeneous pixels. Shape ``[3, 4]``."""
        return self.camera @ self.rectified

    def resized(self, scale_x: float, scale_y: float) -> Calibration:
        """Return the calibration of an image stretched by these factors."""
        return Calibration(np.diag((scale_x, scale_y, 1.0)) @ self.camera, self.rectified)

    def to_lidar(self, points: FloatArray) -> FloatArray:
        """Take rectified camera coordinates to LiDAR coordinates. Shape ``[n, 3]``."""
        homogeneous = np.c_[points, np.ones(len(points))]
        placed: FloatArray = (homogeneous @ np.linalg.inv(self.rectified).T)[:, :3]
        return placed

    def to_camera(self, points: FloatArray) -> FloatArray:
        """Take LiDAR coordinates to rectified camera coordinates. Shape ``[n, 3]``."""
        placed: FloatArray = (np.c_[points, np.ones(len(points))] @ self.rectified.T)[:, :3]
        return placed
