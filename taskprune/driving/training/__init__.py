"""Train a driving net."""

from taskprune.driving.training.loop import train
from taskprune.driving.training.settings import TrainSettings

__all__ = ["TrainSettings", "train"]
