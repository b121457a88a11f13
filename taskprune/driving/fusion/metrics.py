"""Average precision of 3D boxes by KITTI's rules, and the IoU of the drivable ground."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taskprune.driving.fusion.boxes import decode, overlaps
from taskprune.driving.fusion.frame import CLASSES, LEVELS, FusionBatch
from taskprune.driving.fusion.grid import BevGrid

MIN_IOU = {"Car": 0.7, "Pedestrian": 0.5}
"""Overlap from which a box counts as found."""

N_RECALLS = 40
"""Recall points the precision is averaged over."""

FloatArray = NDArray[np.float64]


class BoxMetric:
    """AP of 3D boxes, from above and in space, per class and level of difficulty.

    A frame's boxes are matched from the highest score down, each to the free object of its class
    with which it overlaps most. Objects harder than the level, and those marked to be left out,
    neither count when found nor when missed. KITTI also leaves out found boxes that are too low in
    the picture for the level, which a box in space does not tell; so precision here is at most
    KITTI's.

    Args:
        grid: The detector's grid; objects outside of it are left out.
        min_iou: ``{class: overlap from which a box counts as found}``.

    References:
        Geiger et al., *Are we ready for Autonomous Driving?*, CVPR 2012; 40 recall points:
        Simonelli et al., *Disentangling Monocular 3D Object Detection*, ICCV 2019.
    """

    def __init__(self, grid: BevGrid, *, min_iou: Mapping[str, float] = MIN_IOU) -> None:
        self.grid, self.min_iou = grid, dict(min_iou)
        self.reset()

    def reset(self) -> None:
        """Forget all frames seen."""
        self._frames: list[dict[str, Any]] = []

    @torch.no_grad()
    def update(self, outputs: Mapping[str, Any], batch: FusionBatch, /) -> None:
        """Take in ``outputs["detection"]`` and the batch's boxes."""
        for number, found in enumerate(decode(outputs["detection"], self.grid)):
            truth = batch.boxes[number]
            inside = self.grid.contains(truth)
            boxes = found["boxes"].double().cpu().numpy()
            above, space = overlaps(boxes, truth[inside].double().cpu().numpy())
            self._frames.append(
                {
                    "scores": found["scores"].double().cpu().numpy(),
                    "labels": found["labels"].cpu().numpy(),
                    "truth": batch.labels[number][inside].cpu().numpy(),
                    "difficulty": batch.difficulty[number][inside].cpu().numpy(),
                    "bev": above,
                    "3d": space,
                }
            )

    def summary(self) -> dict[str, float]:
        """Return ``{"<class>_<bev | 3d>_<level>": AP}`` and ``map_bev``, ``map_3d`` (moderate).

        Each in 0..1; NaN for a class and level without objects, which the means leave out.
        """
        found: dict[str, float] = {}
        for view in ("bev", "3d"):
            means = []
            for label, name in enumerate(CLASSES):
                for level, level_name in enumerate(LEVELS):
                    ap = self._average_precision(view, label, level)
                    found[f"{name}_{view}_{level_name}"] = ap
                    if level_name == "moderate":
                        means.append(ap)
            known = [ap for ap in means if not math.isnan(ap)]
            found[f"map_{view}"] = float(np.mean(known)) if known else math.nan
        return found

    def compute(self) -> float:
        """Return the mean over classes of the AP from above, moderate; NaN without objects."""
        return self.summary()["map_bev"]

    def _average_precision(self, view: str, label: int, level: int) -> float:
        scores: list[float] = []
        right: list[bool] = []
        n_objects = 0
        for frame in self._frames:
            counts = (frame["truth"] == label) & (frame["difficulty"] <= level)
            n_objects += int(counts.sum())
            mine = np.flatnonzero(frame["labels"] == label)
            mine = mine[np.argsort(-frame["scores"][mine], kind="stable")]
            iou = frame[view][mine]
            verdicts = _match(iou, frame["truth"], counts, label, self.min_iou[CLASSES[label]])
            for index, verdict in zip(mine.tolist(), verdicts, strict=True):
                if verdict is not None:
                    scores.append(float(frame["scores"][index]))
                    right.append(verdict)
        return _averaged(np.array(scores), np.array(right, dtype=bool), n_objects)


def _match(
    iou: FloatArray,
    truth: NDArray[np.int64],
    counts: NDArray[np.bool_],
    label: int,
    least: float,
) -> Sequence[bool | None]:
    """Return for each box, best first, whether it found an object; ``None`` if it is left out."""
    free = (truth == label) | (truth < 0)
    verdicts: list[bool | None] = []
    for row in iou:
        able = free & (row >= least)
        if not able.any():
            verdicts.append(False)
            continue
        # An object that counts goes before one that is left out.
        best = int(np.argmax(np.where(able, row + 2.0 * counts, -1)))
        free[best] = False
        verdicts.append(True if counts[best] else None)
    return verdicts


def _averaged(scores: FloatArray, right: NDArray[np.bool_], n_objects: int) -> float:
    if n_objects == 0:
        return math.nan
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    precision = hits / np.arange(1, len(order) + 1)
    recall = hits / n_objects
    # The best precision at this recall or any higher one.
    best = np.maximum.accumulate(precision[::-1])[::-1]
    points = np.arange(1, N_RECALLS + 1) / N_RECALLS
    place = np.searchsorted(recall, points - 1e-9)
    return float(np.append(best, 0.0)[place.clip(max=len(best))].mean())


class GroundMetric:
    """IoU of the drivable ground over all cells of all frames.

    Args:
        threshold: Probability from which a cell counts as drivable.
    """

    def __init__(self, *, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        """Forget all frames seen."""
        self.common = self.either = 0

    @torch.no_grad()
    def update(self, outputs: Mapping[str, Any], batch: FusionBatch, /) -> None:
        """Take in logits ``outputs["drivable"]`` and the batch's masks; none: skipped."""
        if batch.drivable is None:
            return
        found = outputs["drivable"].sigmoid() >= self.threshold
        truth = batch.drivable > 0.5
        self.common += int((found & truth).sum())
        self.either += int((found | truth).sum())

    def summary(self) -> dict[str, float]:
        """Return ``{"iou": ...}``."""
        return {"iou": self.compute()}

    def compute(self) -> float:
        """Return the IoU in 0..1; NaN without labels."""
        return self.common / self.either if self.either else math.nan
