"""Write driving samples in BDD100K's layout."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from taskprune.driving.data.bdd100k import DIRECT, NOT_DRIVABLE
from taskprune.driving.data.pixels import image_library
from taskprune.driving.data.sample import DrivingSample
from taskprune.errors import InputError
from taskprune.files import write_text

LANE_LINE = 5
"""Byte of a solid single line of other colour, parallel to the lane."""
LANE_BACKGROUND = 255


def write_bdd100k(
    dataset: Dataset[DrivingSample],
    root: str | os.PathLike[str],
    split: str,
    *,
    class_names: Sequence[str] = ("car",),
) -> None:
    """Write a data set so that `BDD100K` reads it back.

    Labels come back as they were when read at the size they were written at (all drivable area is
    written as direct). Images are JPEG files of high quality. A kind of label that all samples lack
    is not written.

    Args:
        dataset: Map-style, with a length.
        root: Folder to write ``images`` and ``labels`` into; made if missing.
        split: Name of the split; it must not exist yet.
        class_names: Category of each class number.

    Raises:
        InputError: The split exists, or a sample has a class without a name, or only some samples
            carry a kind of label.
        MissingDependencyError: Pillow is not installed.
    """
    library, base = image_library(), Path(root)
    images = base / "images" / "100k" / split
    if images.exists():
        raise InputError(
            f"`write_bdd100k` writes a new split. Found {images} already there. "
            "Choose another `split` or `root`, or remove the old files."
        )
    frames: list[dict[str, Any]] = []
    kinds: tuple[bool, ...] | None = None
    for number in range(len(cast(Sized, dataset))):
        sample = dataset[number]
        present = tuple(part is not None for part in (sample.boxes, sample.drivable, sample.lane))
        if kinds is None:
            kinds = present
            images.mkdir(parents=True)
        if present != kinds:
            raise InputError(
                f"`write_bdd100k` needs the same kinds of labels on all samples. Found (boxes, "
                f"drivable, lane) {present} on sample {number} and {kinds} before it."
            )
        name = f"{split}_{number:06d}"
        picture = library.fromarray(sample.image.permute(1, 2, 0).numpy())
        picture.save(images / f"{name}.jpg", quality=95, subsampling=0)
        for task, mask, on, off in (
            ("drivable", sample.drivable, DIRECT, NOT_DRIVABLE),
            ("lane", sample.lane, LANE_LINE, LANE_BACKGROUND),
        ):
            if mask is not None:
                folder = base / "labels" / task / "masks" / split
                folder.mkdir(parents=True, exist_ok=True)
                values = np.where(mask.numpy() > 0, on, off).astype(np.uint8)
                library.fromarray(values).save(folder / f"{name}.png")
        if sample.boxes is not None:
            frames.append(_frame(f"{name}.jpg", sample, class_names))
    if frames:
        path = base / "labels" / "det_20" / f"det_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(frames, indent=1))


def _frame(name: str, sample: DrivingSample, class_names: Sequence[str]) -> dict[str, Any]:
    height, width = sample.image.shape[-2:]
    boxes = cast(Tensor, sample.boxes).double().numpy()
    scale = np.array((width, height))
    # The second corner names the last pixel inside.
    corners = zip(
        (boxes[:, :2] - boxes[:, 2:] / 2) * scale,
        (boxes[:, :2] + boxes[:, 2:] / 2) * scale - 1,
        cast(Tensor, sample.labels).tolist(),
        strict=True,
    )
    labels = []
    for number, ((x1, y1), (x2, y2), label) in enumerate(corners):
        if not 0 <= label < len(class_names):
            raise InputError(
                f"`class_names` must name every class. Found class {label} in {name} and the "
                f"names {list(class_names)}."
            )
        box = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        labels.append({"id": str(number), "category": class_names[label], "box2d": box})
    return {"name": name, "labels": labels}
