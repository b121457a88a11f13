"""Losses of the fusion net's two tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskprune.driving.fusion.boxes import encode
from taskprune.driving.fusion.frame import CLASSES, FusionBatch
from taskprune.driving.fusion.grid import BevGrid
from taskprune.driving.losses.pixelwise import tversky_loss

BOX_WEIGHT = 2.0
DRIVABLE_WEIGHT = 2.0
SPREAD_CELLS = {"Car": 1.2, "Pedestrian": 0.8}
"""How far the target spreads around a centre, in cells."""


def detection_loss(outputs: Mapping[str, Any], batch: FusionBatch, *, grid: BevGrid) -> Tensor:
    """Return the focal loss of the centres' heat plus the L1 loss of the codes at centres.

    References:
        Zhou et al., *Objects as Points*, arXiv:1904.07850, equations 1 and 2; Yin et al.,
        *Center-based 3D Object Detection and Tracking*, CVPR 2021.
    """
    heat = outputs["detection"]["heat"]
    target, where, code = _targets(batch, grid, heat)
    p = heat.sigmoid().clamp(1e-4, 1 - 1e-4)
    is_centre = target == 1
    found = (1 - p) ** 2 * p.log() * is_centre
    elsewhere = (1 - target) ** 4 * p**2 * (1 - p).log() * ~is_centre
    n_centres = is_centre.sum().clamp_min(1)
    loss: Tensor = -(found + elsewhere).sum() / n_centres
    if len(code):
        frame, row, column = where.unbind(1)
        predicted = outputs["detection"]["box"][frame, :, row, column]
        loss = loss + BOX_WEIGHT * F.l1_loss(predicted, code, reduction="sum") / n_centres
    return loss


def drivable_loss(outputs: Mapping[str, Any], batch: FusionBatch) -> Tensor | None:
    """Return cross-entropy plus Tversky of the drivable ground; ``None`` without labels."""
    if batch.drivable is None:
        return None
    logits = outputs["drivable"]
    entropy = F.binary_cross_entropy_with_logits(logits, batch.drivable)
    return DRIVABLE_WEIGHT * (entropy + tversky_loss(logits, batch.drivable))


def _targets(batch: FusionBatch, grid: BevGrid, heat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the heat to aim for, and frame, row, column and code of each centre."""
    target = torch.zeros_like(heat)
    rows = torch.arange(heat.shape[2], device=heat.device).view(-1, 1)
    columns = torch.arange(heat.shape[3], device=heat.device).view(1, -1)
    where, codes = [], []
    for frame, (boxes, labels) in enumerate(zip(batch.boxes, batch.labels, strict=True)):
        counts = grid.contains(boxes) & (labels >= 0)
        cells, code = encode(boxes[counts], grid)
        for (row, column), label in zip(cells.tolist(), labels[counts].tolist(), strict=True):
            spread = SPREAD_CELLS[CLASSES[label]]
            away = (rows - row) ** 2 + (columns - column) ** 2
            bump = torch.exp(-away / (2 * spread**2))
            target[frame, label] = torch.maximum(target[frame, label], bump)
        numbers = torch.full((len(cells), 1), frame, device=cells.device)
        where.append(torch.cat((numbers, cells), dim=1))
        codes.append(code)
    return target, torch.cat(where), torch.cat(codes)
