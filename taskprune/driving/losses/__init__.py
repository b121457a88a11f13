"""Losses of the three driving tasks, ``(outputs, batch) -> scalar or None``."""

from taskprune.driving.losses.detection import detection_loss
from taskprune.driving.losses.masks import drivable_loss, lane_loss

__all__ = ["detection_loss", "drivable_loss", "lane_loss"]
