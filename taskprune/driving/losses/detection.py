"""Detection loss: varifocal + L1 + GIoU over matched queries, for every supervised layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.losses.boxes import corners, iou_and_giou
from taskprune.driving.losses.matching import Match, match

VARIFOCAL_WEIGHT = 1.0
L1_WEIGHT = 5.0
GIOU_WEIGHT = 2.0
VARIFOCAL_ALPHA = 0.75
VARIFOCAL_GAMMA = 2.0


def detection_loss(outputs: Mapping[str, Any], batch: DrivingBatch) -> Tensor | None:
    """Return the set loss of the detection outputs, or ``None`` without labels.

    Last layer, and where present the earlier layers, the encoder's proposals and the denoising
    queries, each ``1 varifocal + 5 L1 + 2 GIoU`` divided by the number of boxes, added up.
    Computed in at least float32. Finite for images without boxes.

    Args:
        outputs: The net's outputs, in eval or train mode.
        batch: Reads ``boxes`` and ``labels``.

    Raises:
        LossError: An output is not finite.

    References:
        Zhao et al., *DETRs Beat YOLOs on Real-time Object Detection*, CVPR 2024; Zhang et al.,
        *VarifocalNet*, CVPR 2021.
    """
    if batch.boxes is None or batch.labels is None:
        return None
    found = outputs["detection"]
    layers = [*found.get("auxiliary", ()), found]
    if "encoder" in found:
        layers.append(found["encoder"])
    with torch.autocast(found["boxes"].device.type, enabled=False):
        boxes, logits = _stacked(layers)
        targets, labels = torch.cat(batch.boxes).to(boxes.dtype), torch.cat(batch.labels)
        pairs = match(logits.detach(), boxes.detach(), batch.labels, batch.boxes)
        loss = set_loss(boxes, logits, targets, labels, pairs=pairs, n_boxes=len(targets))
        if "denoising" in found:
            loss = loss + _denoising_loss(found["denoising"], targets, labels)
    return loss


def set_loss(
    boxes: Tensor,
    logits: Tensor,
    targets: Tensor,
    labels: Tensor,
    *,
    pairs: Match,
    n_boxes: int,
) -> Tensor:
    """Return ``1 varifocal + 5 L1 + 2 GIoU``, summed over layers, per box.

    Args:
        boxes: Predicted. Shape ``[layers, B, Q, 4]``.
        logits: Predicted. Shape ``[layers, B, Q, num_classes]``.
        targets: Wanted, all images in a row. Shape ``[n, 4]``.
        labels: Wanted classes. Shape ``[n]``.
        pairs: Which prediction answers for which box.
        n_boxes: Divisor; 0 counts as 1.
    """
    at = (pairs.layer, pairs.image, pairs.query)
    paired, wanted, label = boxes[at], targets[pairs.target], labels[pairs.target]
    iou, giou = iou_and_giou(corners(paired), corners(wanted))
    entry = (pairs.layer, pairs.image, pairs.query, label)
    quality = torch.zeros_like(logits).index_put(entry, iou.detach())
    is_object = torch.zeros_like(logits).index_put(entry, torch.ones_like(iou))
    total = (
        VARIFOCAL_WEIGHT * varifocal_loss(logits, quality, is_object=is_object).sum()
        + L1_WEIGHT * (paired - wanted).abs().sum()
        + GIOU_WEIGHT * (1 - giou).sum()
    )
    return total / max(n_boxes, 1)


def varifocal_loss(logits: Tensor, quality: Tensor, *, is_object: Tensor) -> Tensor:
    r"""Return the varifocal loss of each entry.

    ``q BCE(p, q)`` where there is an object with overlap q, ``alpha p^gamma BCE(p, 0)`` elsewhere,
    alpha = 0.75, gamma = 2. The weights are constants for the gradient.

    Args:
        logits: Any shape.
        quality: Overlap of the box with its target, 0 elsewhere.
        is_object: 1 at matched entries, 0 elsewhere.

    References:
        Zhang et al., *VarifocalNet: An IoU-aware Dense Object Detector*, CVPR 2021, equation 2.
    """
    p = logits.detach().sigmoid()
    weight = VARIFOCAL_ALPHA * p**VARIFOCAL_GAMMA * (1 - is_object) + quality * is_object
    return weight * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def _denoising_loss(noised: Mapping[str, Any], targets: Tensor, labels: Tensor) -> Tensor:
    """Every positive noised query must return its own box: no matching, the pairs are known."""
    boxes, logits = _stacked(noised["layers"])
    n_layers, n_pairs = len(boxes), len(noised["target_index"])
    layer = torch.arange(n_layers, device=boxes.device).repeat_interleave(n_pairs)
    pairs = Match(
        layer=layer,
        image=noised["batch_index"].repeat(n_layers),
        query=noised["query_index"].repeat(n_layers),
        target=noised["target_index"].repeat(n_layers),
    )
    return set_loss(boxes, logits, targets, labels, pairs=pairs, n_boxes=n_pairs)


def _stacked(layers: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack the layers' boxes and logits, in at least float32."""
    boxes = torch.stack([layer["boxes"] for layer in layers])
    logits = torch.stack([layer["logits"] for layer in layers])
    return (
        boxes.to(torch.promote_types(boxes.dtype, torch.float32)),
        logits.to(torch.promote_types(logits.dtype, torch.float32)),
    )
