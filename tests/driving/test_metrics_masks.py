"""Mask metrics against counts made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from taskprune.calling.task import Metric
from taskprune.driving.batch import DrivingBatch
from taskprune.driving.metrics import DrivableMetric, LaneMetric
from taskprune.errors import InputError


def batch_of(name: str, *masks: list[list[int]]) -> DrivingBatch:
    mask = torch.tensor(masks, dtype=torch.float32)
    labels: dict[str, Any] = {name: mask}
    return DrivingBatch(torch.zeros(len(mask), 3, *mask.shape[1:]), **labels)


def answer(name: str, *masks: list[list[int]], sure: float = 8.0) -> dict[str, torch.Tensor]:
    return {name: (torch.tensor(masks, dtype=torch.float32) * 2 - 1) * sure}


TRUTH = [[1, 1, 0, 0]]
FOUND = [[1, 0, 1, 0]]


def test_perfect_masks_score_one() -> None:
    for metric, name in ((DrivableMetric(), "drivable"), (LaneMetric(), "lane")):
        metric.update(answer(name, TRUTH, [[0, 0, 0, 1]]), batch_of(name, TRUTH, [[0, 0, 0, 1]]))
        assert metric.compute() == 1.0
        assert all(value == 1.0 for value in metric.summary().values())


def test_drivable_score_is_the_mean_of_both_classes() -> None:
    metric = DrivableMetric()
    metric.update(answer("drivable", FOUND), batch_of("drivable", TRUTH))
    assert metric.summary() == pytest.approx(
        {"miou": 1 / 3, "drivable_iou": 1 / 3, "background_iou": 1 / 3}
    )


def test_lane_scores_follow_from_the_four_counts() -> None:
    metric = LaneMetric()
    metric.update(answer("lane", [[1, 0, 1, 0, 0]]), batch_of("lane", [[1, 1, 0, 0, 0]]))
    # 1 hit, 1 missed, 1 invented, 2 rest
    assert metric.summary() == pytest.approx(
        {
            "iou": 1 / 3,
            "accuracy": (1 / 2 + 2 / 3) / 2,
            "sensitivity": 1 / 2,
            "specificity": 2 / 3,
        }
    )


def test_images_count_alike_however_much_they_show() -> None:
    metric = DrivableMetric()
    full, empty = [[1, 1, 1, 1]], [[0, 0, 0, 0]]
    metric.update(answer("drivable", full, FOUND), batch_of("drivable", full, TRUTH))
    # A class that is nowhere does not count: the full image scores 1, not (1 + 0) / 2.
    assert metric.compute() == pytest.approx((1 + 1 / 3) / 2)
    metric.update(answer("drivable", empty), batch_of("drivable", empty))
    assert metric.compute() == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_batching_changes_nothing() -> None:
    torch.manual_seed(0)
    mask = (torch.rand(6, 8, 8) > 0.6).float()
    logits = torch.randn(6, 8, 8)
    whole, parts = LaneMetric(), LaneMetric()
    images = torch.zeros(6, 3, 8, 8)
    whole.update({"lane": logits}, DrivingBatch(images, lane=mask))
    for rows in (slice(0, 1), slice(1, 6)):
        parts.update({"lane": logits[rows]}, DrivingBatch(images[rows], lane=mask[rows]))
    assert parts.summary() == whole.summary()


def test_an_image_without_lanes_has_no_iou_and_no_accuracy() -> None:
    metric = LaneMetric()
    nothing = [[0, 0, 0, 0]]
    metric.update(answer("lane", TRUTH, nothing), batch_of("lane", TRUTH, nothing))
    assert metric.compute() == 1.0
    assert metric.summary()["accuracy"] == 1.0
    metric.update(answer("lane", FOUND), batch_of("lane", nothing))
    assert metric.compute() == 0.5


def test_threshold_is_a_probability() -> None:
    for threshold, expected in ((0.6, 1.0), (0.8, 0.0)):
        metric = LaneMetric(threshold=threshold)
        logits = torch.tensor([[[0.7]]]).logit()
        metric.update(
            {"lane": logits}, DrivingBatch(torch.zeros(1, 3, 1, 1), lane=torch.ones(1, 1, 1))
        )
        assert metric.compute() == expected


@pytest.mark.parametrize("metric", [DrivableMetric(), LaneMetric()], ids=lambda m: type(m).__name__)
def test_without_labels_the_value_is_undefined(metric: DrivableMetric | LaneMetric) -> None:
    assert isinstance(metric, Metric)
    metric.update({}, DrivingBatch(torch.zeros(1, 3, 4, 4)))
    assert math.isnan(metric.compute())


def test_reset_forgets() -> None:
    metric = DrivableMetric()
    metric.update(answer("drivable", FOUND), batch_of("drivable", TRUTH))
    metric.reset()
    metric.update(answer("drivable", TRUTH), batch_of("drivable", TRUTH))
    assert metric.compute() == 1.0


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match=r"threshold.*between 0 and 1"):
        LaneMetric(threshold=1.0)
    with pytest.raises(InputError, match=r"batch\.lane.*shape"):
        LaneMetric().update({"lane": torch.zeros(1, 2, 2)}, batch_of("lane", TRUTH))
