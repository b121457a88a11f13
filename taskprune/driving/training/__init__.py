"""Train a driving net."""

from taskprune.driving.training.kind import NetKind
from taskprune.driving.training.loop import train
from taskprune.driving.training.settings import TrainSettings

__all__ = ["NetKind", "TrainSettings", "train"]
