"""The panoptic driving net in three scales, re-implemented from the published description."""

from taskprune.driving.nets.config import NetConfig, StageConfig
from taskprune.driving.nets.net import FEATURE_MODULES, PanopticDrivingNet, build_net

__all__ = [
    "FEATURE_MODULES",
    "NetConfig",
    "PanopticDrivingNet",
    "StageConfig",
    "build_net",
]
