"""Losses of the fusion net's two tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskprune.driving.fusion.boxes import encode
from taskprune.driving.fusion.frame import BEYOND, CLASSES, FusionBatch
from taskprune.driving.fusion.grid import BevGrid
from taskprune.driving.losses.masks import tversky_loss

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
    target, where, label, code = _targets(batch, grid, heat)
    frame, row, column = where.unbind(1)
    is_centre = torch.zeros_like(heat, dtype=torch.bool)
    is_centre[frame, label, row, column] = True
    p = heat.sigmoid().clamp(1e-4, 1 - 1e-4)
    found = (1 - p) ** 2 * p.log() * is_centre
    elsewhere = (1 - target) ** 4 * p**2 * (1 - p).log() * ~is_centre
    n_centres = is_centre.sum().clamp_min(1)
    loss: Tensor = -(found + elsewhere).sum() / n_centres
    if len(code):
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


def _targets(
    batch: FusionBatch, grid: BevGrid, heat: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the heat to aim for; frame, row and column, class, and code of each centre to find.

    Objects of no class and those beyond all levels raise the heat they lie under, so that finding
    them is no mistake, and need not be found: many cannot be seen at all.
    """
    target = torch.zeros_like(heat)
    rows = torch.arange(heat.shape[2], device=heat.device).view(-1, 1)
    columns = torch.arange(heat.shape[3], device=heat.device).view(1, -1)
    where, classes, codes = [], [], []
    objects = zip(batch.boxes, batch.labels, batch.difficulty, strict=True)
    for frame, (boxes, labels, difficulty) in enumerate(objects):
        inside = grid.contains(boxes)
        labels = labels[inside]
        cells, code = encode(boxes[inside], grid)
        for (row, column), label in zip(cells.tolist(), labels.tolist(), strict=True):
            away = (rows - row) ** 2 + (columns - column) ** 2
            for kind in [label] if label >= 0 else range(len(CLASSES)):
                bump = torch.exp(-away / (2 * SPREAD_CELLS[CLASSES[kind]] ** 2))
                target[frame, kind] = torch.maximum(target[frame, kind], bump)
        counts = (labels >= 0) & (difficulty[inside] < BEYOND)
        numbers = torch.full((int(counts.sum()), 1), frame, device=cells.device)
        where.append(torch.cat((numbers, cells[counts]), dim=1))
        classes.append(labels[counts])
        codes.append(code[counts])
    return target, torch.cat(where), torch.cat(classes), torch.cat(codes)
