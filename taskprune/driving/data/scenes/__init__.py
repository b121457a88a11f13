"""Procedural road scenes with exact labels."""

from taskprune.driving.data.scenes.dataset import MIN_BOX_SIDE, RoadScenes, draw_scene

__all__ = ["MIN_BOX_SIDE", "RoadScenes", "draw_scene"]
