"""The KITTI object data set in its own layout: image_2, velodyne, calib, label_2, ImageSets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from taskprune.driving.fusion.calibration import Calibration, FloatArray
from taskprune.driving.fusion.difficulty import difficulty
from taskprune.driving.fusion.frame import CLASSES, FusionFrame
from taskprune.errors import DataError, InputError

NEAREST = {"Van": "Car", "Person_sitting": "Pedestrian"}
"""Kinds that count neither as found nor as invented where the class they resemble is judged."""


@dataclass(frozen=True, eq=False)
class Label:
    """One line of a label file, in KITTI's units.

    Attributes:
        kind: Such as ``"Car"``.
        truncation: Part outside the image, 0 to 1.
        occlusion: 0 visible to 3 unknown.
        rectangle: Left, top, right, bottom in pixels.
        size: Height, width, length in metres.
        location: Bottom centre in rectified camera coordinates.
        rotation: About the camera's y axis, in radians.
    """

    kind: str
    truncation: float
    occlusion: int
    rectangle: tuple[float, float, float, float]
    size: tuple[float, float, float]
    location: tuple[float, float, float]
    rotation: float

    @property
    def difficulty(self) -> int:
        """0 easy, 1 moderate, 2 hard, 3 beyond: the first level whose limits it keeps."""
        height = self.rectangle[3] - self.rectangle[1]
        return difficulty(height, self.occlusion, self.truncation)


def read_labels(path: Path) -> list[Label]:
    """Read a file of ``label_2/``.

    Raises:
        DataError: The file is missing, or a line has another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"Cannot read the labels `{path}`: {error}.") from error
    labels = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        words = line.split()
        try:
            values = [float(word) for word in words[1:15]]
            if len(values) < 14:
                raise ValueError(f"{len(words)} words")
        except ValueError as error:
            raise DataError(
                f"Expected line {number} of `{path}` to hold a kind and 14 numbers. Found: {error}."
            ) from error
        truncation, occlusion, _alpha, *rest = values
        labels.append(
            Label(
                kind=words[0],
                truncation=truncation,
                occlusion=int(occlusion),
                rectangle=(rest[0], rest[1], rest[2], rest[3]),
                size=(rest[4], rest[5], rest[6]),
                location=(rest[7], rest[8], rest[9]),
                rotation=rest[10],
            )
        )
    return labels


def boxes_in_lidar(labels: list[Label], calibration: Calibration) -> FloatArray:
    """Return centre, length, width, height and yaw in LiDAR coordinates. Shape ``[n, 7]``."""
    if not labels:
        return np.zeros((0, 7))
    height, width, length = np.array([label.size for label in labels]).T
    bottom = np.array([label.location for label in labels], dtype=np.float64)
    centre = calibration.to_lidar(bottom - np.c_[np.zeros_like(height), height / 2, 0 * height])
    rotation = np.array([label.rotation for label in labels])
    # The direction, taken over point by point: the axes of the two frames need not be parallel.
    ahead = np.c_[np.cos(rotation), np.zeros_like(rotation), -np.sin(rotation)]
    turned = ahead @ np.linalg.inv(calibration.rectified)[:3, :3].T
    yaw = np.arctan2(turned[:, 1], turned[:, 0])
    boxes: FloatArray = np.c_[centre, length, width, height, yaw]
    return boxes


class KittiObjects(Dataset[FusionFrame]):
    """Frames of the KITTI object benchmark.

    Args:
        root: Folder that holds ``training``, ``testing`` and ``ImageSets``.
        split: Name of a file in ``ImageSets``; ``"test"`` reads the unlabelled ``testing``.
        size: Width and height to stretch images to; ``None`` keeps them as they are.

    Raises:
        DataError: A folder or the list of the split is missing.
        InputError: The size is out of range.
    """

    def __init__(
        self, root: str | Path, split: str = "train", *, size: tuple[int, int] | None = None
    ) -> None:
        if size is not None and min(size) < 8:
            raise InputError(f"`size` must be width and height in pixels. Found {size!r}.")
        self.root, self.split, self.size = Path(root), split, size
        self.folder = self.root / ("testing" if split == "test" else "training")
        listed = self.root / "ImageSets" / f"{split}.txt"
        for needed in (self.folder, listed):
            if not needed.exists():
                raise DataError(
                    f"Expected KITTI's object layout under `{self.root}`: training/ and testing/ "
                    "with image_2, velodyne, calib and label_2, and ImageSets/. Found no "
                    f"`{needed.relative_to(self.root)}`."
                )
        self.names = listed.read_text(encoding="utf-8").split()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> FusionFrame:
        """Read one frame.

        Raises:
            DataError: A file is missing or damaged; names it.
        """
        name = self.names[number]
        calibration = Calibration.read(self.folder / "calib" / f"{name}.txt")
        image, scale = _read_image(self.folder / "image_2" / f"{name}.png", self.size)
        labels_at = self.folder / "label_2" / f"{name}.txt"
        labels = read_labels(labels_at) if labels_at.exists() else []
        known = [x for x in labels if NEAREST.get(x.kind, x.kind) in CLASSES]
        numbers = [CLASSES.index(x.kind) if x.kind in CLASSES else -1 for x in known]
        return FusionFrame(
            image=image,
            points=_read_points(self.folder / "velodyne" / f"{name}.bin"),
            projection=torch.from_numpy(calibration.resized(*scale).projection).float(),
            boxes=torch.from_numpy(boxes_in_lidar(known, calibration)).float(),
            labels=torch.tensor(numbers, dtype=torch.int64),
            difficulty=torch.tensor([x.difficulty for x in known], dtype=torch.int64),
        )


def _read_image(
    path: Path, size: tuple[int, int] | None
) -> tuple[torch.Tensor, tuple[float, float]]:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError as error:
        raise DataError(f"Cannot read the image `{path}`: {error}.") from error
    width, height = image.size
    if size is not None:
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels, (image.size[0] / width, image.size[1] / height)


def _read_points(path: Path) -> torch.Tensor:
    try:
        numbers = np.fromfile(path, dtype="<f4")
    except OSError as error:
        raise DataError(f"Cannot read the points `{path}`: {error}.") from error
    if numbers.size % 4 or not np.isfinite(numbers).all():
        raise DataError(
            f"Expected `{path}` to hold float32 x, y, z, reflectance. Found {numbers.size} numbers"
            f"{'' if numbers.size % 4 else ', some of them not finite'}."
        )
    return torch.from_numpy(numbers.reshape(-1, 4).copy())
