"""One batch of driving images with the labels of the three tasks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound=Any)


def on_device(batch: Batch, device: torch.device | str) -> Batch:
    """Return a batch on another device: a dataclass of tensors, tuples of them and ``None``."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        return None if value is None else tuple(v.to(device) for v in value)

    moves = {field.name: moved(getattr(batch, field.name)) for field in fields(batch)}
    return replace(batch, **moves)


@dataclass(frozen=True, eq=False)
class DrivingBatch:
    """Images and labels; a task without labels in this batch is ``None``.

    Attributes:
        images: RGB in [0, 1]. Shape ``[B, 3, H, W]``, float32.
        boxes: Per image, centre x, centre y, width, height, all divided by the image size.
            Shape ``[n_i, 4]``, float32.
        labels: Per image, class numbers. Shape ``[n_i]``, int64.
        drivable: 1 where the road can be driven on, 0 elsewhere. Shape ``[B, H, W]``, float32.
        lane: 1 on lane lines, 0 elsewhere. Shape ``[B, H, W]``, float32.
    """

    images: Tensor
    boxes: tuple[Tensor, ...] | None = None
    labels: tuple[Tensor, ...] | None = None
    drivable: Tensor | None = None
    lane: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> DrivingBatch:
        """Return the batch on another device."""
        return on_device(self, device)
