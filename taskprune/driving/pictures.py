"""Draw what a driving net sees: boxes, drivable area and lane lines over the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.metrics import DRIVABLE_THRESHOLD, LANE_THRESHOLD
from taskprune.errors import MissingDependencyError
from taskprune.restore import evaluating

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRIVABLE_COLOUR = np.array([0.10, 0.75, 0.35])
LANE_COLOUR = np.array([0.95, 0.20, 0.20])
BOX_COLOUR = "#ffd21f"
SCORE_THRESHOLD = 0.4
"""Detections below this score are not drawn."""


def side_by_side(
    models: dict[str, nn.Module], batch: DrivingBatch, path: Path, *, n_images: int = 3
) -> None:
    """Write a picture: a row per image, a column for the labels and for each model.

    Args:
        models: Column title to model; all run in eval mode and are given back as they were.
        batch: Images with labels.
        path: PNG file to write.
        n_images: How many images of the batch to show.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(
            'Drawing needs matplotlib. Install it with `pip install "taskprune[driving]"`.'
        ) from error
    with matplotlib.rc_context({"font.size": 9}):
        _figure(models, batch, min(n_images, len(batch))).savefig(path)


def _figure(models: dict[str, nn.Module], batch: DrivingBatch, n_images: int) -> Figure:
    from matplotlib.figure import Figure

    height, width = batch.images.shape[-2:]
    columns = len(models) + 1
    figure = Figure(figsize=(4 * columns, (4 * height / width + 0.3) * n_images), dpi=100)
    axes = figure.subplots(n_images, columns, squeeze=False)
    predictions = {name: _predict(model, batch) for name, model in models.items()}
    for row in range(n_images):
        image = batch.images[row].permute(1, 2, 0).numpy()
        _draw(axes[row][0], image, _labels(batch, row))
        for column, name in enumerate(models, start=1):
            _draw(axes[row][column], image, predictions[name][row])
    for axis, title in zip(axes[0], ["labels", *models], strict=True):
        axis.set_title(title)
    figure.tight_layout(pad=0.3)
    return figure


class _Scene:
    """Masks ``[H, W]`` and boxes ``[n, 4]`` (centre form, 0 to 1) to draw; ``None``: unknown."""

    def __init__(self, drivable: Tensor | None, lane: Tensor | None, boxes: Tensor | None) -> None:
        self.drivable, self.lane, self.boxes = drivable, lane, boxes


def _labels(batch: DrivingBatch, row: int) -> _Scene:
    return _Scene(
        None if batch.drivable is None else batch.drivable[row] > 0.5,
        None if batch.lane is None else batch.lane[row] > 0.5,
        None if batch.boxes is None else batch.boxes[row],
    )


@torch.no_grad()
def _predict(model: nn.Module, batch: DrivingBatch) -> list[_Scene]:
    with evaluating(model):
        outputs: dict[str, Any] = model(batch.images)
    scores = outputs["detection"]["logits"].sigmoid().amax(-1)
    return [
        _Scene(
            outputs["drivable"][row].sigmoid() > DRIVABLE_THRESHOLD,
            outputs["lane"][row].sigmoid() > LANE_THRESHOLD,
            outputs["detection"]["boxes"][row][scores[row] > SCORE_THRESHOLD],
        )
        for row in range(len(batch))
    ]


def _draw(axis: Axes, image: NDArray[np.float32], scene: _Scene) -> None:
    from matplotlib.patches import Rectangle

    shown = image.astype(np.float64)
    for mask, colour, strength in (
        (scene.drivable, DRIVABLE_COLOUR, 0.45),
        (scene.lane, LANE_COLOUR, 0.9),
    ):
        if mask is not None:
            chosen = mask.numpy()
            shown[chosen] = (1 - strength) * shown[chosen] + strength * colour
    axis.imshow(shown)
    height, width = image.shape[:2]
    boxes: Sequence[list[float]] = [] if scene.boxes is None else scene.boxes.tolist()
    for x, y, w, h in boxes:
        axis.add_patch(
            Rectangle(
                ((x - w / 2) * width, (y - h / 2) * height),
                w * width,
                h * height,
                fill=False,
                edgecolor=BOX_COLOUR,
                linewidth=1.5,
            )
        )
    axis.set_axis_off()
