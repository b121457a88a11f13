"""Train a driving net."""

from taskprune.driving.training.kind import PANOPTIC, NetKind
from taskprune.driving.training.loop import train
from taskprune.driving.training.settings import TrainSettings

__all__ = ["PANOPTIC", "NetKind", "TrainSettings", "train"]
