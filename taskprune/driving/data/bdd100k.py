"""Read driving data in BDD100K's own layout."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from taskprune.driving.data.box_files import (
    Boxes,
    check_classes,
    read_frame_list,
    read_image_labels,
)
from taskprune.driving.data.pixels import read_image, read_mask, shrink_area, shrink_lines
from taskprune.driving.data.sample import DrivingSample, check_size
from taskprune.errors import DataError

VEHICLE_CLASSES: Mapping[str, int] = {"car": 0, "truck": 0, "bus": 0, "train": 0}
"""All motor vehicles with a body are one class, as usual for panoptic driving nets."""

DIRECT, ALTERNATIVE, NOT_DRIVABLE = 0, 1, 2
LANE_BACKGROUND_BIT = 8
"""A byte of a lane mask is background where this bit is set."""

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
_log = logging.getLogger("taskprune")


class BDD100K(Dataset[DrivingSample]):
    """Images and labels of the three driving tasks, in BDD100K's layout.

    ===========================================  ==================================================
    ``images/100k/{split}/*.jpg``                images, sorted by name
    ``labels/det_20/det_{split}.json``           boxes of all images; or, in the older layout,
    ``labels/100k/{split}/*.json``               boxes of one image each
    ``labels/drivable/masks/{split}/*.png``      0 direct, 1 alternative (both drivable), 2 neither
    ``labels/lane/masks/{split}/*.png``          lane line where ``byte & 8 == 0``
    ===========================================  ==================================================

    A kind of label that the split does not have at all is ``None`` on every sample. Where a kind
    exists, each image needs its mask. Images that the frame list does not name (BDD100K has some)
    are left out and listed in `left_out`. Everything is stretched to ``size``: images bilinearly,
    drivable area by majority, lane lines so that every pixel a line touches stays (a thin line
    keeps at least a pixel's width), boxes as shares of the image. Boxes are clipped to the image;
    nothing is left of a box outside.

    Args:
        root: Folder that holds ``images`` and ``labels``.
        split: ``"train"``, ``"val"``, ``"test"``, or another folder name.
        size: Width and height in pixels, multiples of 32.
        classes: Category to class number; boxes of other categories are left out.

    Attributes:
        names: File names of the images, in order.
        left_out: File names of images that have no entry in the frame list.

    Raises:
        InputError: ``size`` or ``classes`` does not fit.
        DataError: A folder, image, label file or mask is missing or damaged; damage inside an image
            or mask shows when the sample is read.
        MissingDependencyError: Pillow is not installed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        size: tuple[int, int],
        classes: Mapping[str, int] = VEHICLE_CLASSES,
    ) -> None:
        self.root, self.split, self.size = Path(root), split, check_size(size)
        self.classes = check_classes(classes)
        self._images = self.root / "images" / "100k" / split
        names = _image_names(self.root, self._images)
        self._boxes = self._read_boxes(names)
        boxes = self._boxes
        self.names = names if boxes is None else [name for name in names if name in boxes]
        self.left_out = [] if boxes is None else [name for name in names if name not in boxes]
        if not self.names:
            raise DataError(
                f"{self.root}: expected a frame list that names the images of {self._images}. "
                f"Found none of them in it, for example not {names[0]!r}. "
                "Use the images and labels of one release."
            )
        if self.left_out:
            _log.info("%d images of %s have no frame: left out", len(self.left_out), self._images)
        self._drivable = self._mask_folder("drivable")
        self._lane = self._mask_folder("lane")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> DrivingSample:
        name = self.names[index]
        image, (width, height) = read_image(self._images / name, size=self.size)
        boxes, labels = self._scaled_boxes(name, width, height)
        return DrivingSample(
            image=torch.from_numpy(image),
            boxes=boxes,
            labels=labels,
            drivable=self._drivable_label(name, (width, height)),
            lane=self._lane_label(name, (width, height)),
        )

    def _read_boxes(self, names: list[str]) -> dict[str, Boxes] | None:
        frame_list = self.root / "labels" / "det_20" / f"det_{self.split}.json"
        if frame_list.exists():
            return read_frame_list(frame_list, self.classes)
        folder = self.root / "labels" / "100k" / self.split
        if not folder.is_dir():
            return None
        paths = {name: folder / f"{Path(name).stem}.json" for name in names}
        return {name: read_image_labels(path, self.classes) for name, path in paths.items()}

    def _mask_folder(self, task: str) -> Path | None:
        """Return the folder of a task's masks, all of them present; ``None`` if there is none."""
        folder = self.root / "labels" / task / "masks" / self.split
        if not folder.is_dir():
            return None
        present = {entry.name for entry in os.scandir(folder)}
        missing = [name for name in map(_mask_name, self.names) if name not in present]
        if missing:
            raise DataError(
                f"{folder / missing[0]}: expected a mask for each of {len(self.names)} images. "
                f"Found {len(missing)} missing. Complete the folder, or remove it to read the data "
                f"without {task} labels."
            )
        return folder

    def _scaled_boxes(
        self, name: str, width: int, height: int
    ) -> tuple[Tensor | None, Tensor | None]:
        if self._boxes is None:
            return None, None
        borders, numbers = self._boxes[name]
        limits = np.array((width, height, width, height), np.float64)
        shares = np.clip(borders / limits, 0, 1)
        sides = shares[:, 2:] - shares[:, :2]
        kept = (sides > 0).all(axis=1)
        centred = np.concatenate(((shares[:, :2] + shares[:, 2:]) / 2, sides), axis=1)
        return (
            torch.from_numpy(centred[kept].astype(np.float32)),
            torch.from_numpy(numbers[kept]),
        )

    def _drivable_label(self, name: str, size: tuple[int, int]) -> Tensor | None:
        if self._drivable is None:
            return None
        path = self._drivable / _mask_name(name)
        values = read_mask(path, size=size)
        if int(values.max()) > NOT_DRIVABLE:
            raise DataError(
                f"{path}: expected only the values 0 (direct), 1 (alternative) and 2 (neither). "
                f"Found {int(values.max())}. Use the files of `labels/drivable/masks`."
            )
        return torch.from_numpy(shrink_area(values != NOT_DRIVABLE, size=self.size))

    def _lane_label(self, name: str, size: tuple[int, int]) -> Tensor | None:
        if self._lane is None:
            return None
        values: NDArray[np.uint8] = read_mask(self._lane / _mask_name(name), size=size)
        return torch.from_numpy(shrink_lines((values & LANE_BACKGROUND_BIT) == 0, size=self.size))


def _image_names(root: Path, folder: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(f"{root}: expected a data folder. Found none. Give the path of the data.")
    if not folder.is_dir():
        splits = sorted(entry.name for entry in folder.parent.glob("*") if entry.is_dir())
        raise DataError(
            f"{folder}: expected a folder of images. Found none; the splits there are {splits}. "
            "Unpack BDD100K's images under `images/100k`."
        )
    names = sorted(e.name for e in os.scandir(folder) if e.name.lower().endswith(_IMAGE_ENDINGS))
    if not names:
        raise DataError(f"{folder}: expected JPEG images. Found none. Unpack the images there.")
    return names


def _mask_name(name: str) -> str:
    return f"{Path(name).stem}.png"
