"""The fusion net's two tasks as taskprune sees them."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from taskprune import Task
from taskprune.driving.fusion.frame import FusionBatch
from taskprune.driving.fusion.grid import BevGrid
from taskprune.driving.fusion.losses import detection_loss, drivable_loss
from taskprune.driving.fusion.metrics import BoxMetric, GroundMetric


def fusion_tasks(grid: BevGrid) -> dict[str, Task]:
    """Return the tasks "detection" and "drivable", each with loss and a fresh metric.

    The metrics are the mean AP from above at KITTI's thresholds, and the IoU of the ground.
    """
    return {
        "detection": Task(
            partial(detection_loss, grid=grid), outputs="detection", metric=BoxMetric(grid)
        ),
        "drivable": Task(drivable_loss, outputs="drivable", metric=GroundMetric()),
    }


def fusion_forward(model: nn.Module, batch: FusionBatch) -> Any:
    """Run a fusion net on a batch."""
    return model(batch.images, batch.points, batch.projection)
