"""Paint the upright faces along the road: house fronts, rows of trees, barriers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from taskprune.driving.data.scenes import noise
from taskprune.driving.data.scenes.canvas import OBSTACLE, Canvas
from taskprune.driving.data.scenes.geometry import View
from taskprune.driving.data.scenes.layout import Layout, Wall
from taskprune.driving.data.scenes.light import Light
from taskprune.driving.data.scenes.noise import Floats


@dataclass(frozen=True)
class _Face:
    """A wall as its columns see it.

    Attributes:
        height: Metres, 0 where there is a gap. Shape ``[w]``.
        albedo: From metres above the foot ``[h, w]`` to RGB ``[3, h, w]``.
        glow: From metres above the foot ``[h, w]`` to emitted light ``[h, w]``, or ``None``.
    """

    height: Floats
    albedo: Callable[[Floats], Floats]
    glow: Callable[[Floats], Floats] | None = None


def paint_walls(
    canvas: Canvas, view: View, layout: Layout, light: Light, rng: np.random.Generator
) -> None:
    """Paint the faces along the road over the ground they hide."""
    for wall in layout.walls:
        _paint_wall(canvas, view, wall, light, rng)


def _paint_wall(
    canvas: Canvas, view: View, wall: Wall, light: Light, rng: np.random.Generator
) -> None:
    distance = view.wall(wall.s)
    columns = np.flatnonzero(np.isfinite(distance) & (distance > 1.6))
    # The draws below must not depend on the image size, so they come before any early return.
    along = distance[columns]
    face = _FACES[wall.kind](along.astype(np.float32), light, rng)
    if not len(columns):
        return
    left, right = int(columns[0]), int(columns[-1]) + 1
    base = view.course.elevation(along)
    foot, head = view.row(along, base), view.row(along, base + face.height)
    top, bottom = max(0, int(head.min())), min(view.height, int(np.ceil(foot.max())))
    if top >= bottom or right - left != len(columns):
        return
    area = (slice(top, bottom), slice(left, right))
    depth = along.astype(np.float32)
    v = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
    mask = (v > head) & (v < foot) & (canvas.depth[area] > depth - 0.5)
    up = (foot.astype(np.float32) - v) * (depth / np.float32(view.focal))
    glow = 0.0 if face.glow is None else face.glow(up)
    colour = light.shade(face.albedo(up), depth[None], glow=glow)
    np.copyto(canvas.colour[:, top:bottom, left:right], colour, where=mask)
    np.copyto(canvas.depth[area], depth, where=mask)
    np.copyto(canvas.owner[area], np.int16(OBSTACLE), where=mask)


def _texture(texture: Floats, along: Floats, up: Floats, *, scale: float, start: int) -> Floats:
    """Look a texture up on a wall, ``scale`` texels to a metre."""
    mask = noise.TEXTURE_SIZE - 1
    column = ((along * np.float32(scale)).astype(np.int32) + start) & mask
    row = ((up * np.float32(scale)).astype(np.int32) & mask) * noise.TEXTURE_SIZE
    values: Floats = np.take(texture.ravel(), row + column)
    return values


def _houses(along: Floats, light: Light, rng: np.random.Generator) -> _Face:
    ends = np.cumsum(rng.uniform(7, 24, 40))
    heights = rng.uniform(3.5, 17, 41) * (rng.random(41) > 0.12)
    tint = rng.uniform((0.92, 0.84, 0.72), (1.08, 1.0, 1.0), (41, 3)).T * rng.uniform(
        0.12, 0.62, 41
    )
    storey, bay = float(rng.uniform(2.6, 3.4)), float(rng.uniform(1.8, 3.6))
    start = int(rng.integers(0, noise.TEXTURE_SIZE))
    lit_share = float(rng.uniform(0.8, 1.8))
    house = np.searchsorted(ends, along)
    colours = tint.astype(np.float32)[:, house]
    column = np.mod(along, bay)
    pane = (column > 0.25 * bay) & (column < 0.75 * bay)

    def windows(up: Floats) -> Floats:
        floor = np.mod(up, storey)
        mask = (floor > 0.3 * storey) & (floor < 0.75 * storey) & pane
        return mask.astype(np.float32)

    def albedo(up: Floats) -> Floats:
        dirt = 1 + 0.12 * _texture(noise.rough(), along, up, scale=6, start=start)
        colour: Floats = colours[:, None] * (dirt * (1 - 0.6 * windows(up)))
        return colour

    def glow(up: Floats) -> Floats:
        room = _texture(noise.white(), along / bay, up / storey, scale=1, start=start)
        strength = 0.55 * light.lamps * (room > lit_share) * windows(up)
        lit: Floats = np.multiply.outer(np.array((1.0, 0.8, 0.5), np.float32), strength)
        return lit

    return _Face(heights[house].astype(np.float32), albedo, glow if light.lamps > 0 else None)


def _trees(along: Floats, light: Light, rng: np.random.Generator) -> _Face:
    start = int(rng.integers(0, noise.TEXTURE_SIZE))
    height, ragged = rng.uniform(2.5, 9), rng.uniform(0.5, 2.0)
    leaf = rng.uniform((0.08, 0.13, 0.05), (0.26, 0.34, 0.14)).astype(np.float32)
    if light.weather == "snow":
        leaf = (0.5 * leaf + rng.uniform(0.05, 0.35)).astype(np.float32)
    crowns = _texture(noise.rough(), along, np.zeros_like(along), scale=5, start=start)

    def albedo(up: Floats) -> Floats:
        leaves = 1 + 0.35 * _texture(noise.rough(), along, up, scale=9, start=start)
        colour: Floats = leaf[:, None, None] * (leaves * np.minimum(0.55 + 0.12 * up, 1))
        return colour

    return _Face(np.maximum(height + ragged * crowns, 0).astype(np.float32), albedo)


def _barrier(along: Floats, light: Light, rng: np.random.Generator) -> _Face:  # noqa: ARG001 - one form for all faces
    height = rng.uniform(0.7, 1.2) if rng.random() < 0.7 else rng.uniform(2.5, 4.5)
    grey = np.full(3, rng.uniform(0.3, 0.7), np.float32)
    gap, start = float(rng.uniform(2, 6)), int(rng.integers(0, noise.TEXTURE_SIZE))
    joint = 1 - 0.3 * (np.mod(along, gap) < 0.06 * gap)

    def albedo(up: Floats) -> Floats:
        dirt = 1 + 0.08 * _texture(noise.rough(), along, up, scale=8, start=start)
        return grey[:, None, None] * (dirt * joint.astype(np.float32))

    return _Face(np.full_like(along, height), albedo)


_FACES: dict[str, Callable[[Floats, Light, np.random.Generator], _Face]] = {
    "houses": _houses,
    "trees": _trees,
    "barrier": _barrier,
}
