"""Losses of a mask against its logits: focal and Tversky."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
