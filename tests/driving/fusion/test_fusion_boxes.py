"""Boxes survive their code, and overlaps of rotated boxes are those of geometry."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from taskprune.driving.fusion import BevGrid, BoxMetric, FusionBatch, GroundMetric
from taskprune.driving.fusion.boxes import decode, encode, overlaps
from taskprune.driving.fusion.frame import BEYOND
from taskprune.driving.fusion.losses import detection_loss

GRID = BevGrid(cell=1.0)


def some_boxes(n: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    cells = torch.randperm(40 * 40, generator=g)[:n] * 1.0
    centre = torch.stack((cells // 40 + 2, cells % 40 - 18), 1) + torch.rand(n, 2, generator=g)
    size = torch.rand(n, 3, generator=g) + 0.5
    yaw = (torch.rand(n, 1, generator=g) - 0.5) * 6
    return torch.cat((centre, -torch.rand(n, 1, generator=g), size, yaw), 1)


def as_maps(
    boxes: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor
) -> dict[str, torch.Tensor]:
    cells, code = encode(boxes, GRID)
    heat = torch.full((1, 2, *GRID.shape), -20.0)
    box = torch.zeros(1, 8, *GRID.shape)
    heat[0, labels, cells[:, 0], cells[:, 1]] = scores.logit()
    box[0, :, cells[:, 0], cells[:, 1]] = code.T
    return {"heat": heat, "box": box}


def batch_of(boxes: torch.Tensor, labels: torch.Tensor, level: int = 1) -> FusionBatch:
    return FusionBatch(
        images=torch.zeros(1, 3, 8, 8),
        points=torch.zeros(1, 1, 4),
        projection=torch.zeros(1, 3, 4),
        boxes=(boxes,),
        labels=(labels,),
        difficulty=(torch.full((len(boxes),), level),),
    )


def spread_out(n: int) -> torch.Tensor:
    boxes = some_boxes(n)
    boxes[:, 0] = 2 + 4 * torch.arange(n) + 0.3
    boxes[:, 1] = torch.linspace(-15, 15, n)
    return boxes


def test_decoding_returns_the_encoded_boxes() -> None:
    boxes = spread_out(6)
    # A box turned by half a turn is the same box.
    boxes[:, 6] = (boxes[:, 6] + math.pi / 2) % math.pi - math.pi / 2
    scores = torch.linspace(0.9, 0.4, 6)
    [found] = decode(as_maps(boxes, torch.zeros(6, dtype=torch.int64), scores), GRID, limit=6)
    torch.testing.assert_close(found["boxes"], boxes, atol=1e-4, rtol=0)
    torch.testing.assert_close(found["scores"], scores)


def test_overlap_of_a_box_with_itself_is_one_and_turned_boxes_follow_geometry() -> None:
    box = np.array([[5.0, 1.0, 0.0, 2.0, 2.0, 2.0, 0.4]])
    above, space = overlaps(box, box)
    np.testing.assert_allclose([above[0, 0], space[0, 0]], 1.0)
    turned = box + np.array([0, 0, 0, 0, 0, 0, math.pi / 4])
    octagon = 8 * (math.sqrt(2) - 1)
    above, space = overlaps(box, turned)
    np.testing.assert_allclose(above[0, 0], octagon / (8 - octagon))
    lifted = box + np.array([0, 0, 1.0, 0, 0, 0, 0])
    above, space = overlaps(box, lifted)
    np.testing.assert_allclose([above[0, 0], space[0, 0]], [1.0, 1 / 3])


def test_perfect_boxes_have_precision_one() -> None:
    boxes, labels = spread_out(6), torch.tensor([0, 1, 0, 1, 0, 1])
    metric = BoxMetric(GRID)
    outputs = {"detection": as_maps(boxes, labels, torch.full((6,), 0.9))}
    metric.update(outputs, batch_of(boxes, labels))
    summary = metric.summary()
    assert summary["map_bev"] == pytest.approx(1.0)
    assert summary["Car_3d_hard"] == pytest.approx(1.0)
    assert math.isnan(summary["Car_bev_easy"])


def test_a_false_box_with_the_highest_score_halves_the_precision_of_one_object() -> None:
    boxes, labels = spread_out(2), torch.tensor([0, 0])
    outputs = {"detection": as_maps(boxes, labels, torch.tensor([0.9, 0.5]))}
    metric = BoxMetric(GRID)
    metric.update(outputs, batch_of(boxes[1:], labels[1:]))
    assert metric.summary()["Car_bev_moderate"] == pytest.approx(0.5)


def test_objects_that_are_too_hard_count_neither_way() -> None:
    boxes, labels = spread_out(2), torch.tensor([0, 0])
    outputs = {"detection": as_maps(boxes, labels, torch.tensor([0.9, 0.5]))}
    batch = batch_of(boxes, labels)
    hard = FusionBatch(
        **{
            **{n: getattr(batch, n) for n in ("images", "points", "projection", "boxes", "labels")},
            "difficulty": (torch.tensor([3, 1]),),
        }
    )
    metric = BoxMetric(GRID)
    metric.update(outputs, hard)
    assert metric.summary()["Car_bev_moderate"] == pytest.approx(1.0)


def test_ground_metric_is_the_iou_over_all_cells() -> None:
    metric = GroundMetric()
    logits = torch.tensor([[[3.0, 3.0], [-3.0, -3.0]]])
    batch = batch_of(some_boxes(1), torch.tensor([0]))
    truth = FusionBatch(
        images=batch.images,
        points=batch.points,
        projection=batch.projection,
        boxes=batch.boxes,
        labels=batch.labels,
        difficulty=batch.difficulty,
        drivable=torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]),
    )
    metric.update({"drivable": logits}, truth)
    assert metric.compute() == pytest.approx(1 / 3)


def test_hidden_objects_are_neither_asked_for_nor_held_against_the_net() -> None:
    boxes = spread_out(2)
    labels = torch.zeros(2, dtype=torch.int64)
    one = dataclasses.replace(batch_of(boxes, labels), difficulty=(torch.tensor([1, BEYOND]),))
    quiet = as_maps(boxes[:1], labels[:1], torch.tensor([0.99]))
    cells, _ = encode(boxes, GRID)
    loud = {name: value.clone() for name, value in quiet.items()}
    loud["heat"][0, 0, cells[1, 0], cells[1, 1]] = 5.0
    both = [detection_loss({"detection": maps}, one, grid=GRID) for maps in (quiet, loud)]
    torch.testing.assert_close(both[0], both[1])
    visible = batch_of(boxes, labels)
    missed, found = (
        detection_loss({"detection": maps}, visible, grid=GRID) for maps in (quiet, loud)
    )
    assert found < missed
