"""Losses of the two mask tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.losses.pixelwise import focal_loss, tversky_loss
from taskprune.errors import InputError

FOCAL_WEIGHT = 24.0
SECOND_WEIGHT = 8.0
"""Weight of the loss beside the focal one: cross-entropy for road, Tversky for lanes."""


def drivable_loss(outputs: Mapping[str, Any], batch: DrivingBatch) -> Tensor | None:
    """Return ``24 focal + 8 cross-entropy`` of the drivable area; ``None`` without labels.

    Computed in at least float32.

    Raises:
        InputError: Mask and logits differ in shape.

    References:
        Wang et al., *RMT-PPAD*, arXiv:2508.06529.
    """
    if batch.drivable is None:
        return None
    with torch.autocast(outputs["drivable"].device.type, enabled=False):
        logits, mask = _paired(outputs["drivable"], batch.drivable, name="drivable")
        cross_entropy = F.binary_cross_entropy_with_logits(logits, mask)
        return FOCAL_WEIGHT * focal_loss(logits, mask) + SECOND_WEIGHT * cross_entropy


def lane_loss(outputs: Mapping[str, Any], batch: DrivingBatch) -> Tensor | None:
    """Return ``24 focal + 8 Tversky`` of the lane lines; ``None`` without labels.

    Computed in at least float32.

    Raises:
        InputError: Mask and logits differ in shape.

    References:
        Wang et al., *RMT-PPAD*, arXiv:2508.06529.
    """
    if batch.lane is None:
        return None
    with torch.autocast(outputs["lane"].device.type, enabled=False):
        logits, mask = _paired(outputs["lane"], batch.lane, name="lane")
        return FOCAL_WEIGHT * focal_loss(logits, mask) + SECOND_WEIGHT * tversky_loss(logits, mask)


def _paired(logits: Tensor, mask: Tensor, *, name: str) -> tuple[Tensor, Tensor]:
    if logits.shape != mask.shape:
        raise InputError(
            f"`batch.{name}` must have the shape of the logits, {tuple(logits.shape)}. "
            f"Found {tuple(mask.shape)}. Resize the masks together with the images."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits, mask.to(logits.dtype)
