"""Quality of the detected boxes, by COCO's rules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taskprune.driving.batch import DrivingBatch
from taskprune.errors import MissingDependencyError

MAX_DETECTIONS = 100
"""Detections per image that count, the best ones (COCO's number)."""

MIN_SCORE = 0.001
"""Detections scored lower are dropped, as is usual where recall is reported."""


class DetectionMetric:
    """Average precision and recall of boxes, computed by COCO's evaluator.

    Batches without box labels are skipped. Needs the extra ``driving``.

    References:
        Lin et al., *Microsoft COCO*, ECCV 2014; evaluator: faster-coco-eval. Columns as in Wang
        et al., *RMT-PPAD*, arXiv:2508.06529.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all batches seen."""
        self._images: list[dict[str, Any]] = []
        self._truth: list[NDArray[np.float64]] = []
        self._found: list[NDArray[np.float64]] = []

    @torch.no_grad()
    def update(self, outputs: Mapping[str, Any], batch: DrivingBatch, /) -> None:
        """Take in ``outputs["detection"]`` and the batch's boxes.

        ``boxes`` ``[B, Q, 4]`` are cx, cy, w, h in 0..1, ``logits`` ``[B, Q, num_classes]``.
        Every pair of query and class is a detection.
        """
        if batch.boxes is None or batch.labels is None:
            return
        height, width = batch.images.shape[-2:]
        boxes = outputs["detection"]["boxes"].double()
        scores = outputs["detection"]["logits"].double().sigmoid()
        n_classes = scores.shape[2]
        best, place = scores.flatten(1).topk(min(MAX_DETECTIONS, scores[0].numel()), dim=1)
        for image in range(len(batch)):
            number = len(self._images)
            self._images.append({"id": number, "width": width, "height": height})
            kept = best[image] >= MIN_SCORE
            query, label = place[image][kept] // n_classes, place[image][kept] % n_classes
            found = _corner_and_size(boxes[image][query].cpu().numpy(), width, height)
            self._found.append(
                _rows(number, found, best[image][kept].cpu().numpy(), label.cpu().numpy())
            )
            truth = _corner_and_size(batch.boxes[image].double().cpu().numpy(), width, height)
            self._truth.append(
                _rows(number, truth, np.ones(len(truth)), batch.labels[image].cpu().numpy())
            )

    def summary(self) -> dict[str, float]:
        """Return the quality over all images, each number in 0..1; NaN without any labelled box.

        Returns:
            ``map50``, ``map50_95``: average precision at IoU 0.5, and over IoU 0.5 to 0.95.
            ``recall``: part of the boxes that some detection finds at IoU 0.5, however low its
            score. ``precision``, ``f1``: at the score with the best F1. Means over classes.
        """
        names = ("map50", "map50_95", "recall", "precision", "f1")
        truth = np.concatenate(self._truth) if self._truth else np.zeros((0, 7))
        found = np.concatenate(self._found) if self._found else np.zeros((0, 7))
        if len(truth) == 0:
            return dict.fromkeys(names, math.nan)
        if len(found) == 0:
            return dict.fromkeys(names, 0.0)
        precision, recall, recall_grid = _evaluate(self._images, truth, found)
        precision, recall = precision[..., 0, 0], recall[..., 0, 0]  # all areas, all detections
        labelled = recall[0] > -1  # classes with at least one box
        curve = precision[0][:, labelled].mean(axis=1)  # [recall grid]
        f1 = 2 * curve * recall_grid / np.maximum(curve + recall_grid, 1e-12)
        best = int(f1.argmax())
        values = (
            curve.mean(),
            precision[:, :, labelled].mean(),
            recall[0][labelled].mean(),
            curve[best],
            f1[best],
        )
        return {name: float(value) for name, value in zip(names, values, strict=True)}

    def compute(self) -> float:
        """Return the mean average precision at IoU 0.5; NaN without any labelled box."""
        return self.summary()["map50"]


def _corner_and_size(boxes: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    """Turn (cx, cy, w, h) in 0..1 into (left, top, w, h) in pixels."""
    pixels: NDArray[Any] = boxes.reshape(-1, 4) * np.array([width, height, width, height])
    pixels[:, :2] -= pixels[:, 2:] / 2
    return pixels


def _rows(
    image: int, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]
) -> NDArray[np.float64]:
    """Return (image, left, top, w, h, score, class) a row, the evaluator's table form."""
    rows = np.empty((len(boxes), 7))
    rows[:, 0], rows[:, 1:5], rows[:, 5], rows[:, 6] = image, boxes, scores, labels
    return rows


def _evaluate(
    images: list[dict[str, Any]], truth: NDArray[np.float64], found: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Run COCO's evaluator without its printing.

    Returns:
        Precision ``[IoU thresholds, recall grid, classes, 1, 1]``, recall ``[IoU thresholds,
        classes, 1, 1]`` (-1 where a class has no boxes) and the recall grid ``[101]``.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise MissingDependencyError(
            "Measuring detections needs faster-coco-eval. Install it with "
            '`pip install "taskprune[driving]"`.'
        ) from error
    classes = np.unique(truth[:, 6]).astype(int)
    annotations = [
        {
            "id": number + 1,
            "image_id": int(row[0]),
            "bbox": row[1:5].tolist(),
            "area": float(row[3] * row[4]),
            "category_id": int(row[6]),
            "iscrowd": 0,
        }
        for number, row in enumerate(truth)
    ]
    labelled = COCO(
        {
            "info": {},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": int(c), "name": str(c)} for c in classes],
        },
        print_function=_silent,
    )
    evaluator = COCOeval_faster(
        labelled, labelled.loadRes(found), iouType="bbox", print_function=_silent
    )
    evaluator.params.maxDets = [MAX_DETECTIONS]
    evaluator.params.areaRng = evaluator.params.areaRng[:1]
    evaluator.params.areaRngLbl = evaluator.params.areaRngLbl[:1]
    evaluator.evaluate()
    evaluator.accumulate()
    return (
        np.asarray(evaluator.eval["precision"]),
        np.asarray(evaluator.eval["recall"]),
        np.asarray(evaluator.params.recThrs),
    )


def _silent(*_: object) -> None:
    pass
