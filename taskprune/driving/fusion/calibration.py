"""KITTI's calibration files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
            DataError: The file is missing or lacks a matrix.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"Cannot read the calibration `{path}`: {error}.") from error
        found = dict(line.split(":", 1) for line in lines if ":" in line)

        def matrix(name: str, shape: tuple[int, int]) -> FloatArray:
            try:
                numbers = np.array(found[name].split(), dtype=np.float64)
                return numbers.reshape(shape)
            except (KeyError, ValueError) as error:
                raise DataError(
                    f"Expected `{path}` to hold `{name}` with {shape[0] * shape[1]} numbers. "
                    f"Found {found.get(name, 'no such line').strip()[:40]!r}."
                ) from error

        rotation, velodyne = np.eye(4), np.eye(4)
        rotation[:3, :3] = matrix("R0_rect", (3, 3))
        velodyne[:3] = matrix("Tr_velo_to_cam", (3, 4))
        return cls(matrix("P2", (3, 4)), rotation @ velodyne)

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
