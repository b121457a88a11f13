"""Rays against a flat road and upright boxes: what a LiDAR measures and a camera sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GROUND, SKY = -1, -2
"""What a ray hits that hits no box."""


@dataclass(frozen=True, eq=False)
class Hits:
    """The first thing on each ray.

    Attributes:
        distance: Along the ray, infinite for the sky. Shape ``[R]``.
        what: Number of the box, :data:`GROUND` or :data:`SKY`. Shape ``[R]``, int64.
        normal: Of the surface hit, zero for the sky. Shape ``[R, 3]``.
        point: Where. Shape ``[R, 3]``; meaningless for the sky.
        reached: How many rays would hit each box if it stood alone. Shape ``[n]``, int64.
    """

    distance: FloatArray
    what: IntArray
    normal: FloatArray
    point: FloatArray
    reached: IntArray


def cast(origin: FloatArray, directions: FloatArray, boxes: FloatArray, ground: float) -> Hits:
    """Find what each ray meets first.

    Args:
        origin: Where all rays start. Shape ``[3]``.
        directions: Unit vectors. Shape ``[R, 3]``.
        boxes: Centre, length, width, height, yaw. Shape ``[n, 7]``.
        ground: Height of the ground.
    """
    n_rays = len(directions)
    with np.errstate(divide="ignore", invalid="ignore"):
        down = (ground - origin[2]) / directions[:, 2]
    distance = np.where(down > 0, down, np.inf)
    what = np.where(np.isfinite(distance), GROUND, SKY).astype(np.int64)
    normal = np.zeros((n_rays, 3))
    normal[what == GROUND, 2] = 1
    reached = np.zeros(len(boxes), dtype=np.int64)
    for number, box in enumerate(boxes):
        near = np.flatnonzero(_towards(origin, directions, box))
        entry, face = _enter(origin, directions[near], box)
        reached[number] = np.isfinite(entry).sum()
        closer = entry < distance[near]
        rays = near[closer]
        distance[rays], what[rays], normal[rays] = entry[closer], number, face[closer]
    reach = np.where(np.isfinite(distance), distance, 0)
    return Hits(distance, what, normal, origin + directions * reach[:, None], reached)


def _towards(origin: FloatArray, directions: FloatArray, box: FloatArray) -> NDArray[np.bool_]:
    """Return which rays meet the sphere around a box: all others need no closer look."""
    centre = box[:3] - origin
    away = float(np.linalg.norm(centre))
    radius = float(np.linalg.norm(box[3:6])) / 2
    if away <= radius:
        return np.ones(len(directions), dtype=np.bool_)
    reached: NDArray[np.bool_] = directions @ centre > np.sqrt(away**2 - radius**2)
    return reached


def _enter(
    origin: FloatArray, directions: FloatArray, box: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return where each ray enters one box (infinite if it does not), and the normal there.

    The slab method: in the box's own frame, the last of the three entries must come before the
    first of the three exits.
    """
    cos, sin = np.cos(box[6]), np.sin(box[6])
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    start = turn @ (origin - box[:3])
    ahead = directions @ turn.T
    half = box[3:6] / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = (-half - start) / ahead, (half - start) / ahead
    entries, exits = np.minimum(near, far), np.maximum(near, far)
    axis = np.nanargmax(np.where(np.isnan(entries), -np.inf, entries), axis=1)
    entry = entries[np.arange(len(axis)), axis]
    leaves = np.nanmin(np.where(np.isnan(exits), np.inf, exits), axis=1)
    hit = (entry < leaves) & (entry > 0)
    own = np.zeros_like(ahead)
    own[np.arange(len(axis)), axis] = -np.sign(ahead[np.arange(len(axis)), axis])
    return np.where(hit, entry, np.inf), own @ turn
