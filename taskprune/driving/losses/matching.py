"""Hungarian matching of predictions to boxes, for all decoder layers and images at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from taskprune.driving.losses.boxes import corners, iou_and_giou
from taskprune.errors import LossError

CLASS_COST = 2.0
L1_COST = 5.0
GIOU_COST = 2.0
FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


@dataclass(frozen=True, eq=False)
class Match:
    """Pairs of a prediction and a box. Each field has shape ``[pairs]``, int64.

    Attributes:
        layer: Decoder layer of the prediction.
        image: Image of the prediction.
        query: Number of the prediction within its image.
        target: Number of the box, counted through all images of the batch.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


@torch.no_grad()
def matching_cost(logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return ``2 class + 5 L1 - 2 GIoU`` of every prediction and every box of its image.

    The class cost is the focal loss for "this class" minus that for "not this class".

    Args:
        logits: Predicted. Shape ``[layers, B, Q, num_classes]``.
        boxes: Predicted, cx, cy, w, h. Shape ``[layers, B, Q, 4]``.
        labels: Wanted classes, padded. Shape ``[B, n]``.
        targets: Wanted boxes, padded. Shape ``[B, n, 4]``.

    Returns:
        Costs. Shape ``[layers, B, Q, n]``.

    References:
        Zhao et al., *DETRs Beat YOLOs on Real-time Object Detection*, CVPR 2024.
    """
    p = logits.sigmoid()
    as_object = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * -torch.nn.functional.logsigmoid(logits)
    as_other = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * -torch.nn.functional.logsigmoid(-logits)
    index = labels[None, :, None].expand(*logits.shape[:3], -1)
    class_cost = (as_object - as_other).gather(-1, index)
    l1 = (boxes[..., :, None, :] - targets[None, :, None]).abs().sum(dim=-1)
    _, giou = iou_and_giou(corners(boxes)[..., :, None, :], corners(targets)[None, :, None])
    return CLASS_COST * class_cost + L1_COST * l1 - GIOU_COST * giou


def match(
    logits: Tensor, boxes: Tensor, labels: tuple[Tensor, ...], targets: tuple[Tensor, ...]
) -> Match:
    """Find the cheapest one-to-one assignment in every layer and image.

    Args:
        logits: Shape ``[layers, B, Q, num_classes]``.
        boxes: Shape ``[layers, B, Q, 4]``.
        labels: Per image ``[n_i]``.
        targets: Per image ``[n_i, 4]``.

    Raises:
        LossError: A prediction is not finite.
    """
    counts = [len(t) for t in targets]
    if sum(counts) == 0:
        none = torch.zeros(0, dtype=torch.long, device=boxes.device)
        return Match(layer=none, image=none, query=none, target=none)
    padded_labels = pad_sequence(list(labels), batch_first=True)
    padded_targets = pad_sequence(list(targets), batch_first=True).to(boxes.dtype)
    # One transfer to the CPU for all layers and images.
    cost = matching_cost(logits, boxes, padded_labels, padded_targets).cpu().numpy()
    if not np.isfinite(cost).all():
        raise LossError(
            "Matching needs finite boxes and logits. Found NaN or infinity in the detection "
            "outputs. Lower the learning rate or clip the gradients."
        )
    starts = np.cumsum([0, *counts[:-1]])
    pairs = []
    for layer in range(cost.shape[0]):
        for image, (count, start) in enumerate(zip(counts, starts, strict=True)):
            query, target = linear_sum_assignment(cost[layer, image, :, :count])
            here = np.full_like(query, layer), np.full_like(query, image)
            pairs.append(np.stack((*here, query, target + start)))
    columns = torch.from_numpy(np.concatenate(pairs, axis=1).astype(np.int64)).to(boxes.device)
    return Match(layer=columns[0], image=columns[1], query=columns[2], target=columns[3])
