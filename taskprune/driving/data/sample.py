"""One labelled driving image, and how samples become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskprune.driving.batch import DrivingBatch
from taskprune.errors import InputError


@dataclass(frozen=True, eq=False)
class DrivingSample:
    """One image with the labels of the three tasks; a task without labels is ``None``.

    Attributes:
        image: RGB. Shape ``[3, H, W]``, uint8.
        boxes: Centre x, centre y, width, height, divided by the image size. Shape ``[n, 4]``,
            float32.
        labels: Class numbers. Shape ``[n]``, int64.
        drivable: 1 where the road can be driven on. Shape ``[H, W]``, uint8.
        lane: 1 on lane lines. Shape ``[H, W]``, uint8.
    """

    image: Tensor
    boxes: Tensor | None = None
    labels: Tensor | None = None
    drivable: Tensor | None = None
    lane: Tensor | None = None


def collate(samples: Sequence[DrivingSample]) -> DrivingBatch:
    """Stack samples into a batch: images to float in [0, 1], masks to float, boxes as a tuple.

    Raises:
        InputError: There are no samples, their sizes differ, or only some of them carry the labels
            of a task.
    """
    if not samples:
        raise InputError("`collate` needs at least one sample. Found none.")
    sizes = sorted({tuple(sample.image.shape[-2:]) for sample in samples})
    if len(sizes) > 1:
        raise InputError(
            f"`collate` needs images of one size. Found (height, width) {sizes}. "
            "Give all data sets the same `size`."
        )
    drivable = _present(samples, "drivable")
    lane = _present(samples, "lane")
    return DrivingBatch(
        images=torch.stack([sample.image for sample in samples]).float().div_(255),
        boxes=_present(samples, "boxes"),
        labels=_present(samples, "labels"),
        drivable=None if drivable is None else torch.stack(drivable).float(),
        lane=None if lane is None else torch.stack(lane).float(),
    )


def _present(samples: Sequence[DrivingSample], name: str) -> tuple[Tensor, ...] | None:
    """Return the labels of all samples, or ``None`` if none has them."""
    values = [getattr(sample, name) for sample in samples]
    missing = sum(value is None for value in values)
    if missing == len(values):
        return None
    if missing:
        raise InputError(
            f"`collate` needs the labels of a task on all samples or on none. Found `{name}` "
            f"missing on {missing} of {len(values)}. Batch labelled and unlabelled data separately."
        )
    return tuple(values)


STRIDE = 32
"""Images are halved five times, so both sides must be multiples of this."""


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return ``(width, height)`` in pixels if both are positive multiples of `STRIDE`.

    Raises:
        InputError: They are not.
    """
    if len(size) != 2 or any(side < STRIDE or side % STRIDE for side in size):
        raise InputError(
            f"`size` must be (width, height) in pixels, both multiples of {STRIDE}. Found {size!r}."
        )
    width, height = size
    return int(width), int(height)
