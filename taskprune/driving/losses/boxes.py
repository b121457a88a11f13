"""Box arithmetic: corners and generalised intersection over union."""

from __future__ import annotations

import torch
from torch import Tensor


def corners(boxes: Tensor) -> Tensor:
    """Turn (cx, cy, w, h) into (x0, y0, x1, y1). Shape ``[..., 4] -> [..., 4]``."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU in [0, 1] and generalised IoU in (-1, 1] of broadcast corner boxes.

    ``GIoU = IoU - (|hull| - |union|) / |hull|``. Boxes without area give finite values.

    Args:
        first: Corner boxes. Shape ``[..., 4]``.
        second: Corner boxes that broadcast against ``first``.

    References:
        Rezatofighi et al., *Generalized Intersection over Union*, CVPR 2019.
    """
    eps = torch.finfo(first.dtype).tiny
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    union = _area(first) + _area(second) - intersection
    hull_low = torch.minimum(first[..., :2], second[..., :2])
    hull_high = torch.maximum(first[..., 2:], second[..., 2:])
    hull = (hull_high - hull_low).prod(dim=-1)
    iou = intersection / union.clamp(min=eps)
    return iou, iou - (hull - union) / hull.clamp(min=eps)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
