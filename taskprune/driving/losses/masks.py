"""Losses of masks: focal and Tversky, and what the two mask tasks make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskprune.driving.batch import DrivingBatch
from taskprune.errors import InputError


def focal_loss(logits: Tensor, mask: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return the mean focal loss, ``-alpha_t (1 - p_t)^gamma log p_t``.

    ``p_t`` is the probability given to the truth; ``alpha_t`` is ``alpha`` on the foreground and
    ``1 - alpha`` on the background.

    Args:
        logits: Any shape.
        mask: 0 or 1, same shape.
        alpha: Weight of the foreground.
        gamma: How strongly easy pixels are discounted.

    References:
        Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, equation 5.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    p_wrong = (logits.sigmoid() - mask).abs()
    weight = alpha * mask + (1 - alpha) * (1 - mask)
    return (weight * p_wrong**gamma * cross_entropy).mean()


def tversky_loss(
    logits: Tensor,
    mask: Tensor,
    *,
    missed: float = 0.7,
    invented: float = 0.3,
    smooth: float = 1.0,
) -> Tensor:
    """Return one minus the Tversky index, per image and then averaged.

    ``index = (TP + smooth) / (TP + missed FN + invented FP + smooth)`` with soft counts. Counting
    per image makes the loss of a batch the mean over its images, however they are batched.

    Args:
        logits: Shape ``[B, H, W]``.
        mask: 0 or 1. Shape ``[B, H, W]``.
        missed: Weight of a foreground pixel not found.
        invented: Weight of a background pixel marked.
        smooth: Added above and below; an empty mask left empty costs nothing.

    References:
        Salehi et al., *Tversky Loss Function for Image Segmentation*, MLMI 2017.
    """
    p = logits.sigmoid().flatten(1)
    truth = mask.flatten(1)
    hit = (p * truth).sum(dim=1)
    false_negative = truth.sum(dim=1) - hit
    false_positive = p.sum(dim=1) - hit
    below = hit + missed * false_negative + invented * false_positive + smooth
    return torch.mean(1 - (hit + smooth) / below)


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
