"""The detection metric against cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from taskprune.calling.task import Metric
from taskprune.driving.batch import DrivingBatch
from taskprune.driving.metrics import DetectionMetric

BOX = (0.3, 0.4, 0.2, 0.2)
OTHER = (0.7, 0.6, 0.2, 0.4)
FAR = (0.1, 0.9, 0.1, 0.1)


def labelled(
    *images: list[tuple[float, ...]], labels: list[list[int]] | None = None
) -> DrivingBatch:
    classes = labels or [[0] * len(boxes) for boxes in images]
    return DrivingBatch(
        torch.zeros(len(images), 3, 64, 96),
        boxes=tuple(torch.tensor(boxes, dtype=torch.float32).view(-1, 4) for boxes in images),
        labels=tuple(torch.tensor(c, dtype=torch.long) for c in classes),
    )


def detected(
    *images: list[tuple[tuple[float, ...], list[float]]],
) -> dict[str, dict[str, Tensor]]:
    """Per image (box, probability of each class)."""
    boxes = torch.tensor([[box for box, _ in image] for image in images])
    scores = torch.tensor([[score for _, score in image] for image in images])
    return {"detection": {"boxes": boxes, "logits": scores.logit()}}


def test_perfect_boxes_score_one() -> None:
    metric = DetectionMetric()
    metric.update(
        detected([(BOX, [0.9]), (OTHER, [0.8])], [(FAR, [0.7]), (BOX, [1e-5])]),
        labelled([BOX, OTHER], [FAR]),
    )
    assert metric.compute() == pytest.approx(1.0)
    assert all(value == pytest.approx(1.0) for value in metric.summary().values())


def test_a_better_scored_false_alarm_costs_precision() -> None:
    metric = DetectionMetric()
    metric.update(detected([(FAR, [0.9]), (BOX, [0.8])]), labelled([BOX]))
    # The only hit comes second: precision 1/2 at every recall.
    summary = metric.summary()
    assert summary["map50"] == pytest.approx(0.5)
    assert summary["recall"] == 1.0
    assert summary["precision"] == pytest.approx(0.5)
    assert summary["f1"] == pytest.approx(2 / 3)


def test_a_missed_box_costs_recall() -> None:
    metric = DetectionMetric()
    metric.update(detected([(BOX, [0.9]), (FAR, [1e-5])]), labelled([BOX, OTHER]))
    # Precision 1 up to recall 1/2: 51 of COCO's 101 recall points.
    assert metric.compute() == pytest.approx(51 / 101)
    assert metric.summary()["recall"] == 0.5


def test_a_box_may_be_found_once_only() -> None:
    metric = DetectionMetric()
    metric.update(detected([(BOX, [0.9]), (BOX, [0.8])]), labelled([BOX, OTHER]))
    assert metric.compute() == pytest.approx(51 / 101)


def test_overlap_decides_at_which_threshold_a_box_counts() -> None:
    metric = DetectionMetric()
    wide = (0.3, 0.4, 0.2 * 0.72, 0.2)  # IoU 0.72: counts at 0.5, 0.55, ..., 0.7
    metric.update(detected([(wide, [0.9])]), labelled([BOX]))
    assert metric.compute() == pytest.approx(1.0)
    assert metric.summary()["map50_95"] == pytest.approx(0.5)


def test_classes_are_averaged_and_unlabelled_ones_left_out() -> None:
    metric = DetectionMetric()
    metric.update(
        detected([(BOX, [0.9, 1e-5, 0.6]), (OTHER, [1e-5, 1e-5, 0.5])]),
        labelled([BOX, OTHER], labels=[[0, 1]]),
    )
    assert metric.compute() == pytest.approx(0.5)  # class 0: 1, class 1: 0, class 2: no boxes


def test_batches_without_labels_are_skipped() -> None:
    metric = DetectionMetric()
    assert isinstance(metric, Metric)
    metric.update({}, DrivingBatch(torch.zeros(1, 3, 64, 96)))
    assert math.isnan(metric.compute())
    metric.update(detected([(BOX, [0.9])]), labelled([]))
    assert math.isnan(metric.compute())


def test_no_detection_at_all_scores_zero() -> None:
    metric = DetectionMetric()
    metric.update(detected([(BOX, [1e-5])]), labelled([BOX]))
    assert metric.compute() == 0.0


def test_reset_forgets_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    metric = DetectionMetric()
    metric.update(detected([(FAR, [0.9])]), labelled([BOX]))
    assert metric.compute() == 0.0
    metric.reset()
    metric.update(detected([(BOX, [0.9])]), labelled([BOX]))
    assert metric.compute() == pytest.approx(1.0)
    assert capfd.readouterr() == ("", "")
