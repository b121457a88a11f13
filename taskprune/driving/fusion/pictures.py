"""Draw what a fusion net sees: the camera's picture with the points in it, and the ground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taskprune.driving.fusion.boxes import decode
from taskprune.driving.fusion.frame import FusionBatch
from taskprune.driving.fusion.grid import BevGrid
from taskprune.driving.fusion.scenes import corners
from taskprune.driving.fusion.tasks import fusion_forward
from taskprune.errors import MissingDependencyError
from taskprune.restore import evaluating

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORE_THRESHOLD = 0.3
"""Detections below this score are not drawn."""

LABEL_COLOUR, FOUND_COLOUR = "#ffffff", "#ffd21f"
EDGES = [(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b) in (1, 2, 4)]
"""Pairs of corners, numbered by three bits, that differ in one."""

FloatArray = NDArray[np.float64]


def draw_frames(
    net: nn.Module, batch: FusionBatch, path: Path, *, grid: BevGrid, n_frames: int = 2
) -> None:
    """Write a picture with a column per frame: camera above, ground below.

    Above, the points lie in the picture, the nearer the redder. Below, x points up and y to the
    left; green is what the net takes for drivable. Labels are white, boxes found yellow.

    Args:
        net: A fusion net; its modes are given back.
        batch: Labelled frames.
        path: PNG file to write.
        grid: The net's grid.
        n_frames: How many frames of the batch to show.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(
            'Drawing needs matplotlib. Install it with `pip install "taskprune[driving]"`.'
        ) from error
    with torch.no_grad(), evaluating(net):
        outputs = fusion_forward(net, batch)
    with matplotlib.rc_context({"font.size": 9}):
        _figure(outputs, batch, grid, min(n_frames, len(batch))).savefig(path)


def _figure(outputs: Any, batch: FusionBatch, grid: BevGrid, n_frames: int) -> Figure:
    from matplotlib.figure import Figure

    height, width = batch.images.shape[-2:]
    figure = Figure(figsize=(5 * n_frames, 5 * height / width + 4.6), dpi=100)
    axes = figure.subplots(2, n_frames, squeeze=False, height_ratios=[5 * height / width, 4.6])
    found = decode(outputs["detection"], grid)
    for number in range(n_frames):
        points = batch.points[number][grid.contains(batch.points[number])]
        sure = found[number]["boxes"][found[number]["scores"] > SCORE_THRESHOLD]
        boxes = {LABEL_COLOUR: batch.boxes[number], FOUND_COLOUR: sure}
        _camera(axes[0][number], batch, number, points, boxes)
        drivable = outputs["drivable"][number].sigmoid() > 0.5
        _ground(axes[1][number], grid, drivable, points, boxes)
    figure.tight_layout(pad=0.4)
    return figure


def _camera(
    axis: Axes, batch: FusionBatch, number: int, points: Tensor, boxes: dict[str, Tensor]
) -> None:
    height, width = batch.images.shape[-2:]
    projection = batch.projection[number].double().numpy()
    axis.imshow(batch.images[number].permute(1, 2, 0).numpy())
    pixels, depth = _projected(points[:, :3].double().numpy(), projection)
    ahead = depth > 0.5
    # Points of the ground would cover everything; what stands out is of interest.
    standing = points[:, 2].numpy() > -1.5
    chosen = ahead & standing
    x, y = pixels[chosen].T
    axis.scatter(x, y, c=-depth[chosen], s=1.5, cmap="coolwarm", linewidths=0)
    for colour, drawn in boxes.items():
        for places in corners(drawn.double().numpy()):
            pixels, depth = _projected(places, projection)
            if depth.min() < 0.5:
                continue
            for first, second in EDGES:
                ends = pixels[[first, second]]
                axis.plot(ends[:, 0], ends[:, 1], color=colour, linewidth=0.8)
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_axis_off()


def _ground(
    axis: Axes, grid: BevGrid, drivable: Tensor, points: Tensor, boxes: dict[str, Tensor]
) -> None:
    shown = np.full((*drivable.shape, 3), 0.12)
    shown[drivable.numpy()] = (0.12, 0.38, 0.22)
    # Rows go forwards and columns to the left: the far end and the left side come first.
    axis.imshow(shown[::-1, ::-1], extent=(grid.side[1], grid.side[0], *grid.forward))
    axis.scatter(points[:, 1], points[:, 0], c="#9fb8d0", s=0.6, linewidths=0)
    for colour, drawn in boxes.items():
        for places in corners(drawn.double().numpy()):
            outline = places[[0, 2, 6, 4, 0]]  # the lower four, around
            axis.plot(outline[:, 1], outline[:, 0], color=colour, linewidth=1.1)
    axis.set_xlim(grid.side[1], grid.side[0])
    axis.set_ylim(*grid.forward)
    axis.set_axis_off()


def _projected(places: FloatArray, projection: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return pixels ``[n, 2]`` and depth ``[n]`` of places ``[n, 3]``."""
    seen = np.c_[places, np.ones(len(places))] @ projection.T
    return seen[:, :2] / seen[:, 2:].clip(0.1), seen[:, 2]
