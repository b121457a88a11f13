"""The three driving tasks as taskprune sees them."""

from __future__ import annotations

from typing import Any

from torch import nn

from taskprune import Task
from taskprune.driving.batch import DrivingBatch
from taskprune.driving.losses import detection_loss, drivable_loss, lane_loss
from taskprune.driving.metrics import DetectionMetric, DrivableMetric, LaneMetric


def driving_tasks() -> dict[str, Task]:
    """Return the tasks "detection", "drivable" and "lane", each with loss and a fresh metric.

    The metrics are mAP at IoU 0.5, mean IoU and lane IoU. Each task owns the output of its name.
    """
    return {
        "detection": Task(detection_loss, outputs="detection", metric=DetectionMetric()),
        "drivable": Task(drivable_loss, outputs="drivable", metric=DrivableMetric()),
        "lane": Task(lane_loss, outputs="lane", metric=LaneMetric()),
    }


def forward(model: nn.Module, batch: DrivingBatch) -> Any:
    """Run a driving net on a batch; in train mode its labels become denoising queries."""
    return model(batch.images, batch)
