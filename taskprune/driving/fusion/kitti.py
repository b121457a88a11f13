"""The KITTI object data set in its own layout: image_2, velodyne, calib, label_2, ImageSets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from taskprune.driving.data.pixels import decoded, image_library
from taskprune.driving.fusion.calibration import Calibration, FloatArray
from taskprune.driving.fusion.frame import CLASSES, FusionFrame, difficulty
from taskprune.driving.fusion.plain_text import LIMIT, numbers_in, read_lines
from taskprune.errors import DataError, InputError

MAX_POINTS_BYTES = 2**28
"""Largest file of points; a turn of KITTI's LiDAR takes two million bytes."""

_NAME = re.compile(r"\w[\w.-]*", re.ASCII)

NEAREST = {"Van": "Car", "Person_sitting": "Pedestrian"}
"""Kinds that count neither as found nor as invented where the class they resemble is judged."""

REGION = "DontCare"
"""The kind of regions whose objects nobody labelled."""


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
        DataError: The file is missing or no text, or a line is no object.
    """
    labels = []
    for number, line in enumerate(read_lines(path, "labels"), 1):
        if not line.strip():
            continue
        try:
            labels.append(_label(line.split()))
        except ValueError as error:
            raise DataError(
                f"Expected line {number} of `{path}` to hold a kind and 14 numbers, perhaps a "
                f"score. Found {error}."
            ) from error
    return labels


def _label(words: list[str]) -> Label:
    if len(words) not in (15, 16):
        raise ValueError(f"{len(words)} words")
    truncation, occlusion, _alpha, *rest = numbers_in(words[1:])
    label = Label(
        kind=words[0],
        truncation=truncation,
        occlusion=int(occlusion),
        rectangle=(rest[0], rest[1], rest[2], rest[3]),
        size=(rest[4], rest[5], rest[6]),
        location=(rest[7], rest[8], rest[9]),
        rotation=rest[10],
    )
    # Regions that nobody labelled have -1 in all places but the rectangle.
    if occlusion not in (-1, 0, 1, 2, 3):
        raise ValueError(f"the occlusion {occlusion}")
    if truncation != -1 and not 0 <= truncation <= 1:
        raise ValueError(f"the truncation {truncation}")
    left, top, right, bottom = label.rectangle
    if right < left or bottom < top:
        raise ValueError(f"the rectangle {label.rectangle}")
    if label.kind != REGION and min(label.size) <= 0:
        raise ValueError(f"the size {label.size}")
    return label


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
        DataError: A folder or the list of the split is missing, or it lists no frames.
        InputError: The size is out of range.
    """

    def __init__(
        self, root: str | Path, split: str = "train", *, size: tuple[int, int] | None = None
    ) -> None:
        if size is not None and min(size) < 8:
            raise InputError(f"`size` must be width and height in pixels. Found {size!r}.")
        self.root, self.split, self.size = Path(root), split, size
        self.folder = self.root / ("testing" if split == "test" else "training")
        self._labels = self.folder / "label_2"
        listed = self.root / "ImageSets" / f"{split}.txt"
        for needed in (self.folder, listed):
            if not needed.exists():
                raise DataError(
                    f"Expected KITTI's object layout under `{self.root}`: training/ and testing/ "
                    "with image_2, velodyne, calib and label_2, and ImageSets/. Found no "
                    f"`{needed.relative_to(self.root)}`."
                )
        self.names = [name for line in read_lines(listed, "list") for name in line.split()]
        odd = [name for name in self.names if not _NAME.fullmatch(name)]
        if odd or not self.names:
            found = repr(odd[0]) if odd else "none"
            raise DataError(
                f"Expected `{listed}` to list names of frames, such as 000007. Found {found}."
            )

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
        labels = read_labels(self._labels / f"{name}.txt") if self._labels.is_dir() else []
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
    image = decoded(path).convert("RGB")
    width, height = image.size
    if size is not None:
        image = image.resize(size, image_library().Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels, (image.size[0] / width, image.size[1] / height)


def _read_points(path: Path) -> torch.Tensor:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_POINTS_BYTES + 1)
    except OSError as error:
        raise DataError(f"Cannot read the points `{path}`: {error}.") from error
    if len(content) % 16 or len(content) > MAX_POINTS_BYTES:
        raise DataError(
            f"Expected `{path}` to hold float32 x, y, z, reflectance, in at most "
            f"{MAX_POINTS_BYTES:,} bytes. Found {len(content):,} bytes or more."
        )
    points = np.frombuffer(content, dtype="<f4").reshape(-1, 4)
    if not (np.abs(points) <= LIMIT).all():
        raise DataError(
            f"Expected `{path}` to hold float32 x, y, z, reflectance. Found numbers that are not "
            f"finite or beyond {LIMIT:g}. Copy it again."
        )
    return torch.from_numpy(points.astype(np.float32))
