"""Camera and LiDAR together: data, a made-up world, and the bundled fusion net."""

from taskprune.driving.fusion.frame import CLASSES, FusionBatch, FusionFrame, collate_frames
from taskprune.driving.fusion.grid import BevGrid
from taskprune.driving.fusion.kitti import KittiObjects
from taskprune.driving.fusion.metrics import BoxMetric, GroundMetric
from taskprune.driving.fusion.net import FusionConfig, FusionNet, build_fusion_net
from taskprune.driving.fusion.netfile import load_fusion_net, load_fusion_teacher, save_fusion_net
from taskprune.driving.fusion.recipe import (
    fusion_kind,
    judge,
    scene_batches,
    train_fusion_net,
    two_sensor_scenes,
)
from taskprune.driving.fusion.scenes import TwoSensorScenes
from taskprune.driving.fusion.sensors import Degradation
from taskprune.driving.fusion.tasks import fusion_forward, fusion_tasks

__all__ = [
    "CLASSES",
    "BevGrid",
    "BoxMetric",
    "Degradation",
    "FusionBatch",
    "FusionConfig",
    "FusionFrame",
    "FusionNet",
    "GroundMetric",
    "KittiObjects",
    "TwoSensorScenes",
    "build_fusion_net",
    "collate_frames",
    "fusion_forward",
    "fusion_kind",
    "fusion_tasks",
    "judge",
    "load_fusion_net",
    "load_fusion_teacher",
    "save_fusion_net",
    "scene_batches",
    "train_fusion_net",
    "two_sensor_scenes",
]
