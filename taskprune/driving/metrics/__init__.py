"""Quality of the three driving tasks, measured as in the RMT-PPAD paper."""

from taskprune.driving.metrics.detection import DetectionMetric
from taskprune.driving.metrics.masks import (
    DRIVABLE_THRESHOLD,
    LANE_THRESHOLD,
    DrivableMetric,
    LaneMetric,
)

__all__ = [
    "DRIVABLE_THRESHOLD",
    "LANE_THRESHOLD",
    "DetectionMetric",
    "DrivableMetric",
    "LaneMetric",
]
