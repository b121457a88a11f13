"""Boxes as the detection head codes them, and rotated boxes' overlap."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from taskprune.driving.fusion.grid import BevGrid
from taskprune.errors import MissingDependencyError

MAX_DETECTIONS = 50
"""Boxes per frame, the best ones."""

FloatArray = NDArray[np.float64]


def encode(boxes: Tensor, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """Return the cell that each box's centre lies in, and the code of the box there.

    The yaw is coded by sine and cosine of its double: a box turned by half a turn is the same box,
    and a code that told the two apart would ask for what points on four flat sides do not show.

    Shape: ``[n, 7] -> [n, 2] int64, [n, 8]``.
    """
    place = grid.position(boxes)
    cell = place.floor()
    code = torch.cat(
        (
            place - cell - 0.5,
            boxes[:, 2:3],
            boxes[:, 3:6].log(),
            (2 * boxes[:, 6:7]).sin(),
            (2 * boxes[:, 6:7]).cos(),
        ),
        dim=1,
    )
    return cell.long(), code


@torch.no_grad()
def decode(
    detection: Mapping[str, Tensor], grid: BevGrid, *, limit: int = MAX_DETECTIONS
) -> list[dict[str, Tensor]]:
    """Read the boxes off the maps: peaks of the heat among their eight neighbours.

    Args:
        detection: ``heat`` ``[B, classes, X, Y]`` and ``box`` ``[B, 8, X, Y]``.
        grid: The map's grid.
        limit: How many per frame at most.

    Returns:
        Per frame ``boxes`` ``[k, 7]``, their yaw between plus and minus a quarter turn, ``scores``
        ``[k]`` falling, ``labels`` ``[k]``.
    """
    heat = detection["heat"].sigmoid()
    peak = heat == F.max_pool2d(heat, 3, 1, 1)
    scores = torch.where(peak, heat, torch.zeros_like(heat)).flatten(1)
    best, where = scores.topk(min(limit, scores.shape[1]), dim=1)
    rows, columns = grid.shape
    found = []
    for frame in range(len(heat)):
        label, cell = where[frame] // (rows * columns), where[frame] % (rows * columns)
        code = detection["box"][frame].flatten(1)[:, cell].T  # [k, 8]
        index = torch.stack((cell // columns, cell % columns), dim=1)
        centre = (index + 0.5 + code[:, :2]) * grid.cell
        centre = centre + centre.new_tensor((grid.forward[0], grid.side[0]))
        yaw = torch.atan2(code[:, 6], code[:, 7]) / 2
        size = code[:, 3:6].clamp(-3, 3).exp()
        boxes = torch.cat((centre, code[:, 2:3], size, yaw[:, None]), dim=1)
        found.append({"boxes": boxes, "scores": best[frame], "labels": label})
    return found


def overlaps(boxes: FloatArray, others: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the IoU of each pair of boxes seen from above, and in space.

    Shape: ``[n, 7], [m, 7] -> [n, m], [n, m]``.

    Raises:
        MissingDependencyError: The extra ``driving`` is not installed.
    """
    try:
        import shapely
    except ImportError as error:
        raise MissingDependencyError(
            "The overlap of rotated boxes needs shapely. Install it: pip install "
            "'taskprune[driving]'."
        ) from error
    shape = (len(boxes), len(others))
    if 0 in shape:
        return np.zeros(shape), np.zeros(shape)
    first, second = (shapely.polygons(_footprints(b)) for b in (boxes, others))
    common = shapely.area(shapely.intersection(first[:, None], second[None]))
    area, area_of_others = boxes[:, 3] * boxes[:, 4], others[:, 3] * others[:, 4]
    above = common / (area[:, None] + area_of_others[None] - common)
    top = np.minimum.outer(boxes[:, 2] + boxes[:, 5] / 2, others[:, 2] + others[:, 5] / 2)
    bottom = np.maximum.outer(boxes[:, 2] - boxes[:, 5] / 2, others[:, 2] - others[:, 5] / 2)
    shared = common * (top - bottom).clip(0)
    volume, volume_of_others = area * boxes[:, 5], area_of_others * others[:, 5]
    return above, shared / (volume[:, None] + volume_of_others[None] - shared)


def _footprints(boxes: FloatArray) -> FloatArray:
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    local = signs[None] * boxes[:, None, 3:5] / 2
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    turn = np.stack((np.stack((cos, -sin), -1), np.stack((sin, cos), -1)), -2)
    footprints: FloatArray = np.einsum("nij,nkj->nki", turn, local) + boxes[:, None, :2]
    return footprints
