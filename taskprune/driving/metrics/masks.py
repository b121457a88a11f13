"""Quality of the two mask tasks, per image and then averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from taskprune.driving.batch import DrivingBatch
from taskprune.errors import InputError

DRIVABLE_THRESHOLD = 0.45
"""Probability from which a pixel counts as drivable (the paper's choice)."""

LANE_THRESHOLD = 0.8
"""Probability from which a pixel counts as lane line: the best IoU of the bundled teacher.

Above one half, because the Tversky loss punishes missed pixels more than invented ones, so that
lane probabilities come out too large. The paper's net has its best IoU at 0.90; balanced accuracy
alone would ask for less.
"""


class DrivableMetric:
    """Mean IoU over {background, drivable} of each image, averaged over images.

    A class that is neither present nor predicted in an image does not count there. Batches
    without drivable labels are skipped.

    Args:
        threshold: Probability from which a pixel counts as drivable.

    References:
        Wang et al., *RMT-PPAD*, arXiv:2508.06529 ("DA mIoU").
    """

    def __init__(self, *, threshold: float = DRIVABLE_THRESHOLD) -> None:
        self.threshold = _checked(threshold)
        self.reset()

    def reset(self) -> None:
        """Forget all batches seen."""
        self._foreground: list[Tensor] = []
        self._background: list[Tensor] = []

    def update(self, outputs: Mapping[str, Any], batch: DrivingBatch, /) -> None:
        """Take in logits ``outputs["drivable"]``, shape ``[B, H, W]``, and the batch's masks."""
        if batch.drivable is None:
            return
        hit, missed, invented, rest = _counts(
            outputs["drivable"], batch.drivable, threshold=self.threshold, name="drivable"
        )
        self._foreground.append(hit / (hit + missed + invented))
        self._background.append(rest / (rest + missed + invented))

    def summary(self) -> dict[str, float]:
        """Return ``miou`` and the IoU of both classes, each in 0..1; NaN without labels."""
        foreground, background = _joined(self._foreground), _joined(self._background)
        per_image = torch.stack((foreground, background)).nanmean(dim=0)
        return {
            "miou": _mean(per_image),
            "drivable_iou": _mean(foreground),
            "background_iou": _mean(background),
        }

    def compute(self) -> float:
        """Return the mean IoU in 0..1; NaN without labels."""
        return self.summary()["miou"]


class LaneMetric:
    """IoU of the lane pixels and balanced accuracy of each image, averaged over images.

    ``accuracy = (sensitivity + specificity) / 2``. An image with lanes neither present nor
    predicted has no IoU, one without lanes has no sensitivity; both then drop out of that mean.
    Batches without lane labels are skipped.

    Args:
        threshold: Probability from which a pixel counts as lane line.

    References:
        Wang et al., *RMT-PPAD*, arXiv:2508.06529 ("lane IoU", "lane ACC").
    """

    def __init__(self, *, threshold: float = LANE_THRESHOLD) -> None:
        self.threshold = _checked(threshold)
        self.reset()

    def reset(self) -> None:
        """Forget all batches seen."""
        self._iou: list[Tensor] = []
        self._sensitivity: list[Tensor] = []
        self._specificity: list[Tensor] = []

    def update(self, outputs: Mapping[str, Any], batch: DrivingBatch, /) -> None:
        """Take in logits ``outputs["lane"]``, shape ``[B, H, W]``, and the batch's masks."""
        if batch.lane is None:
            return
        hit, missed, invented, rest = _counts(
            outputs["lane"], batch.lane, threshold=self.threshold, name="lane"
        )
        self._iou.append(hit / (hit + missed + invented))
        self._sensitivity.append(hit / (hit + missed))
        self._specificity.append(rest / (rest + invented))

    def summary(self) -> dict[str, float]:
        """Return ``iou``, ``accuracy`` and its two halves, each in 0..1; NaN without labels."""
        sensitivity, specificity = _joined(self._sensitivity), _joined(self._specificity)
        return {
            "iou": _mean(_joined(self._iou)),
            "accuracy": _mean((sensitivity + specificity) / 2),
            "sensitivity": _mean(sensitivity),
            "specificity": _mean(specificity),
        }

    def compute(self) -> float:
        """Return the lane IoU in 0..1; NaN without labels."""
        return self.summary()["iou"]


def _checked(threshold: float) -> float:
    if not 0 < threshold < 1:
        raise InputError(f"`threshold` must lie between 0 and 1. Found {threshold!r}.")
    return threshold


@torch.no_grad()
def _counts(
    logits: Tensor, mask: Tensor, *, threshold: float, name: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return true positives, false negatives, false positives, true negatives, ``[B]`` each."""
    if logits.shape != mask.shape:
        raise InputError(
            f"`batch.{name}` must have the shape of the logits, {tuple(logits.shape)}. "
            f"Found {tuple(mask.shape)}. Resize the masks together with the images."
        )
    found = (logits >= math.log(threshold / (1 - threshold))).flatten(1)
    truth = (mask > 0.5).flatten(1)
    size = truth.shape[1]
    # Counts of pixels stay exact in float64; 0 / 0 becomes NaN, which the means leave out.
    hit = (found & truth).sum(dim=1).double().cpu()
    n_found, n_truth = found.sum(dim=1).double().cpu(), truth.sum(dim=1).double().cpu()
    return hit, n_truth - hit, n_found - hit, size - n_found - n_truth + hit


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.full((1,), math.nan, dtype=torch.float64)


def _mean(values: Tensor) -> float:
    return float(values.nanmean())
