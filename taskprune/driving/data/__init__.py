"""Driving data: procedural road scenes, BDD100K's layout, augmentation and loading."""

from taskprune.driving.data.augment import (
    Chain,
    ColourJitter,
    Flip,
    ScaleShift,
    SensorNoise,
    standard_augment,
)
from taskprune.driving.data.bdd100k import BDD100K
from taskprune.driving.data.bdd100k_writer import write_bdd100k
from taskprune.driving.data.loading import Augment, Cached, loader
from taskprune.driving.data.sample import DrivingSample, collate
from taskprune.driving.data.scenes import RoadScenes

__all__ = [
    "BDD100K",
    "Augment",
    "Cached",
    "Chain",
    "ColourJitter",
    "DrivingSample",
    "Flip",
    "RoadScenes",
    "ScaleShift",
    "SensorNoise",
    "collate",
    "loader",
    "standard_augment",
    "write_bdd100k",
]
