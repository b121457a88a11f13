"""The two-sensor frames that criteria are compared on, in good weather and with a bad sensor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from taskprune.driving.fusion import (
    Degradation,
    FusionBatch,
    scene_batches,
)

BATCH_SIZE = 8
TUNING_BATCH_SIZE = 4
"""As the net was trained with."""

CONDITIONS = {
    "clean": Degradation(),
    "camera degraded": Degradation(camera=0.8),
    "LiDAR degraded": Degradation(lidar=0.8),
}
"""What a finished network is judged in; the scenes are the same."""


@cache
def calibration(seed: int, n_batches: int) -> Sequence[FusionBatch]:
    """Return what a criterion scores with; made once and kept, as all frames are."""
    return scene_batches("calibration", n_batches, batch_size=BATCH_SIZE, seed=seed)


@cache
def tuning(seed: int, steps: int) -> Sequence[FusionBatch]:
    """Return what a pruned network is fine-tuned with."""
    return scene_batches("tuning", steps, batch_size=TUNING_BATCH_SIZE, seed=seed)


@cache
def validation(condition: str, n: int) -> Sequence[FusionBatch]:
    """Return `n` frames that nothing has been trained on."""
    return scene_batches(
        "validation", n // BATCH_SIZE, batch_size=BATCH_SIZE, degradation=CONDITIONS[condition]
    )
