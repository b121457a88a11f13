"""Pruned fusion nets keep the laws of all pruned nets, on made-up and on real frames."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import pytest
import torch

import taskprune
from taskprune.driving.fusion import (
    BevGrid,
    BoxMetric,
    FusionBatch,
    FusionNet,
    KittiObjects,
    TwoSensorScenes,
    collate_frames,
    fusion_forward,
    fusion_tasks,
    judge,
)
from taskprune.driving.fusion.boxes import encode
from taskprune.driving.fusion.net import SCALES
from taskprune.importance import AlterMomaImportance, Importance, Modality
from taskprune.plan.plan import build_plan
from taskprune.testing import (
    assert_cost_is_exact,
    assert_identity_plan,
    assert_masked_equals_pruned,
    assert_permutation_invariant,
    random_drop,
    randomise_,
)

GRID = BevGrid(cell=3.0)
SIZE = (96, 32)
SENSORS = (Modality("camera", "camera_branch"), Modality("lidar", "lidar_branch"))
CRITERIA: dict[str, str | Importance] = {
    "task_change": "task_change",
    "task_taylor": "task_taylor",
    "altermoma": AlterMomaImportance(SENSORS, reactivation_steps=1),
}


def net() -> FusionNet:
    config = dataclasses.replace(
        SCALES["n"],
        grid=GRID,
        camera=(8, 8, 16, 16),
        camera_out=8,
        lidar=(8, 12, 16),
        lidar_out=8,
        fused=16,
        head=8,
    )
    torch.manual_seed(0)
    return randomise_(FusionNet(config).eval(), seed=0)  # type: ignore[return-value]


def made_up() -> FusionBatch:
    scenes = TwoSensorScenes(2, seed=0, size=SIZE, grid=GRID)
    return collate_frames([scenes[0], scenes[1]], n_points=512, grid=GRID)


def real() -> FusionBatch:
    if "TASKPRUNE_DATA" not in os.environ:
        pytest.skip("needs real data: set TASKPRUNE_DATA to the folder that holds kitti_mini")
    frames = KittiObjects(Path(os.environ["TASKPRUNE_DATA"]) / "kitti_mini", size=SIZE)
    return collate_frames([frames[i] for i in range(len(frames))], n_points=4096, grid=GRID)


SOURCES = {"made-up": made_up, "real": real}


@pytest.mark.parametrize("source", SOURCES)
def test_the_laws_of_pruning_hold(source: str) -> None:
    model, batch = net(), SOURCES[source]()
    graph = taskprune.trace(model, batch, forward=fusion_forward, tasks=fusion_tasks(GRID))
    groups = taskprune.couple(graph)
    plan = build_plan(groups, random_drop(groups, 0.4, seed=1))
    report = assert_masked_equals_pruned(model, plan, batch, forward=fusion_forward, groups=groups)
    assert report.oracle == "masked"
    assert not report.excluded
    assert assert_permutation_invariant(model, groups, None, batch, forward=fusion_forward) < 1e-9
    assert_identity_plan(model, groups, batch, forward=fusion_forward)
    assert_cost_is_exact(model, groups, plan, batch, forward=fusion_forward)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_real_frames_go_through_reader_net_pruning_and_metrics(criterion: str) -> None:
    model, batch = net(), real()
    # Real frames have boxes and no drivable ground, so a made-up batch speaks for that task.
    result = taskprune.prune(
        model,
        fusion_tasks(GRID),
        0.5,
        data=[batch, made_up()],
        forward=fusion_forward,
        importance=CRITERIA[criterion],
        settings=taskprune.PruneSettings(strict=True),
    )
    assert result.report.verification is not None
    assert sum(p.numel() for p in result.model.parameters()) < 0.55 * sum(
        p.numel() for p in model.parameters()
    )
    found = judge(result.model, [batch], grid=GRID)
    assert 0 <= found["detection"]["map_bev"] <= 1
    assert math.isnan(found["drivable"]["iou"]), "there is no such label"


def test_a_detector_that_answers_with_the_labels_is_perfect_on_real_frames() -> None:
    batch, grid = real(), BevGrid()
    heat = torch.full((len(batch), 2, *grid.shape), -20.0)
    box = torch.zeros(len(batch), 8, *grid.shape)
    n_moderate = 0
    for number, (boxes, labels) in enumerate(zip(batch.boxes, batch.labels, strict=True)):
        inside = grid.contains(boxes) & (labels >= 0)
        cells, code = encode(boxes[inside], grid)
        heat[number, labels[inside], cells[:, 0], cells[:, 1]] = 5.0
        box[number, :, cells[:, 0], cells[:, 1]] = code.T
        n_moderate += int((batch.difficulty[number][inside] <= 1).sum())
    assert n_moderate > 1
    metric = BoxMetric(grid)
    metric.update({"detection": {"heat": heat, "box": box}}, batch)
    assert metric.summary()["map_3d"] == pytest.approx(1.0)
