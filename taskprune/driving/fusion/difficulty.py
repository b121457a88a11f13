"""KITTI's three levels of difficulty."""

from __future__ import annotations

LEVELS = ("easy", "moderate", "hard")
MIN_HEIGHT = (40.0, 25.0, 25.0)
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.30, 0.50)
"""Limits of the levels: pixels in a picture 375 high, occlusion level, part outside of it."""

BEYOND = len(LEVELS)
"""What keeps no level's limits: it counts neither when found nor when missed."""


def difficulty(height: float, occlusion: int, truncation: float) -> int:
    """Return 0 easy, 1 moderate, 2 hard, 3 beyond: the first level whose limits are kept.

    Args:
        height: Of the rectangle around the object, in pixels.
        occlusion: 0 visible, 1 partly hidden, 2 largely hidden, 3 unknown.
        truncation: Part outside of the picture, 0 to 1.
    """
    for level in range(BEYOND):
        if (
            height >= MIN_HEIGHT[level]
            and occlusion <= MAX_OCCLUSION[level]
            and truncation <= MAX_TRUNCATION[level]
        ):
            return level
    return BEYOND
