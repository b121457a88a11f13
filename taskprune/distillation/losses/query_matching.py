"""Query detectors: teach each of the student's queries what its teacher query answers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from taskprune.distillation.losses.feature_layout import at_least_float32
from taskprune.errors import InputError

CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0
"""The proportions that DETR's descendants match and weigh with."""


def query_matching(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    r"""Return the distance of matched queries, weighed by the teacher's confidence :math:`p_j`.

    .. math::
        \frac{1}{\sum_j p_j} \sum_j p_j \left( 2\,\mathrm{BCE}(\sigma(\ell^s_{\pi j}),
        \sigma(\ell^t_j)) + 5 \, |b^s_{\pi j} - b^t_j|_1 + 2 \, (1 - \mathrm{GIoU}) \right)

    Queries have no order, so :math:`\pi` is the assignment of least cost per image (Hungarian
    method, the same three terms without the weights :math:`p_j`). :math:`p_j` is the teacher's
    highest class probability: queries that it takes for background hardly count. Our formulation
    of teacher targets; the matching is DETR's.

    Args:
        student: ``(logits [B, Q_s, K], boxes [B, Q_s, 4])``; sigmoid logits, boxes as centre x, y,
            width, height relative to the image.
        teacher: The same with at most ``Q_s`` queries.

    Raises:
        InputError: The shapes do not fit each other.

    References:
        Carion et al., *End-to-End Object Detection with Transformers*, ECCV 2020,
        arXiv:2005.12872, equation 1 (matching).
    """
    logits, boxes = (at_least_float32(part) for part in student)
    with torch.no_grad():
        chances, targets = at_least_float32(teacher[0]).sigmoid(), at_least_float32(teacher[1])
    _check(logits, boxes, chances, targets)
    with torch.no_grad():
        order = _assignment(logits, boxes, chances, targets)  # [B, Q_t]
        weights = chances.amax(dim=2)
    logits = logits.gather(1, order[..., None].expand(-1, -1, logits.shape[2]))
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    classes = F.binary_cross_entropy_with_logits(logits, chances, reduction="none").sum(dim=2)
    distance = (boxes - targets).abs().sum(dim=2)
    overlap = generalised_iou(boxes, targets)
    cost = CLASS_COST * classes + L1_COST * distance + GIOU_COST * (1 - overlap)
    return (weights * cost).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalised IoU of boxes ``[..., 4]`` as centre, width, height; broadcasts.

    References:
        Rezatofighi et al., *Generalized Intersection over Union*, CVPR 2019, arXiv:1902.09630.
    """
    low_1, high_1 = first[..., :2] - first[..., 2:] / 2, first[..., :2] + first[..., 2:] / 2
    low_2, high_2 = second[..., :2] - second[..., 2:] / 2, second[..., :2] + second[..., 2:] / 2
    tiny = torch.finfo(first.dtype).tiny
    common = (torch.minimum(high_1, high_2) - torch.maximum(low_1, low_2)).clamp(min=0).prod(-1)
    union = first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - common
    hull = (torch.maximum(high_1, high_2) - torch.minimum(low_1, low_2)).clamp(min=0).prod(-1)
    return common / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _assignment(logits: Tensor, boxes: Tensor, chances: Tensor, targets: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment  # slow to import, and for this alone

    # BCE(l, p) = softplus(l) - l p, summed over classes: a product of matrices, no [Q, Q, K].
    classes = F.softplus(logits).sum(dim=2)[:, None, :] - chances @ logits.transpose(1, 2)
    distance = torch.cdist(targets, boxes, p=1)
    overlap = generalised_iou(targets[:, :, None], boxes[:, None, :])
    cost = CLASS_COST * classes + L1_COST * distance + GIOU_COST * (1 - overlap)
    # A run that is about to be stopped for NaN should be stopped by the loss, which has a name.
    cost = torch.nan_to_num(cost).cpu()  # [B, Q_t, Q_s]
    columns = [torch.from_numpy(linear_sum_assignment(image.numpy())[1]) for image in cost]
    return torch.stack(columns).to(logits.device)


def _check(logits: Tensor, boxes: Tensor, chances: Tensor, targets: Tensor) -> None:
    fits = (
        logits.dim() == boxes.dim() == chances.dim() == targets.dim() == 3
        and boxes.shape[2] == targets.shape[2] == 4
        and logits.shape[:2] == boxes.shape[:2]
        and chances.shape[:2] == targets.shape[:2]
        and logits.shape[0] == chances.shape[0]
        and logits.shape[2] == chances.shape[2]
        and chances.shape[1] <= logits.shape[1]
    )
    if not fits:
        shapes = [tuple(part.shape) for part in (logits, boxes, chances, targets)]
        raise InputError(
            "Query matching takes logits [B, Q, K] and boxes [B, Q, 4] of both models, the "
            f"student's with at least as many queries. Found {shapes[0]} and {shapes[1]} (student),"
            f" {shapes[2]} and {shapes[3]} (teacher)."
        )
