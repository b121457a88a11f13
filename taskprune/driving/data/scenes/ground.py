"""Paint the ground: surfaces, worn markings, crossings, shadows; and label what it is.

The label of a lane line is its paint as the camera sees it, widened where it would be thinner than
`LANE_WIDTH` pixels, the width that thin labels get in practice so that a net can learn them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskprune.driving.data.scenes import noise
from taskprune.driving.data.scenes.canvas import Canvas
from taskprune.driving.data.scenes.geometry import View
from taskprune.driving.data.scenes.layout import Layout, Marking
from taskprune.driving.data.scenes.light import Light
from taskprune.driving.data.scenes.noise import Floats

LANE_WIDTH = 3.0
"""Least width of a labelled lane line, in pixels of a 320 pixel wide image."""
LANE_SPACING = 9.0
"""Lane lines end where a lane of 3.5 m is narrower than this, in pixels as above."""
LANE_CLARITY = 0.18
"""Lane lines end where air and darkness leave less than this share of their contrast."""

_CELLS_PER_METRE = 20.0
_REACH = 60.0


@dataclass(frozen=True)
class GroundLabels:
    """What the ground is, before anything stands on it.

    Attributes:
        drivable: Shape ``[H, W]``.
        lane: Shape ``[H, W]``.
    """

    drivable: NDArray[np.bool_]
    lane: NDArray[np.bool_]


def paint_ground(
    canvas: Canvas, view: View, layout: Layout, light: Light, rng: np.random.Generator
) -> GroundLabels:
    """Paint all ground pixels and return their labels."""
    area = slice(view.top, view.height)
    cell = ((view.lateral + _REACH) * np.float32(_CELLS_PER_METRE)).astype(np.int32)
    np.clip(cell, 0, int(2 * _REACH * _CELLS_PER_METRE) - 1, out=cell)
    profile, roughness, drivable = _profile(layout, rng)
    surface = np.take(profile, cell, axis=1)
    surface *= 1 + _texture(view, cell, rng) * np.take(roughness, cell)
    wear = _cells(noise.rough(), view, cell, rng, shift=1)
    for seam in layout.seams:
        _paint_line(surface, seam, view, wear)
    if layout.crossing is not None:
        _paint_crossing(surface, layout, view, rng)
    lane = np.zeros(canvas.depth.shape, bool)
    last = _last_lane_distance(view, light)
    for marking in layout.markings:
        _paint_line(surface, marking, view, wear)
        lane[area] |= _line_label(marking, view, last)
    if light.weather == "snow":
        cover = np.clip(
            _cells(noise.smooth(), view, cell, rng, shift=2) - rng.uniform(0.2, 1.6), 0, 0.6
        )
        surface += cover * (np.float32(0.85) - surface)
    if light.sunny:
        surface *= _shadows(view, cell, rng)
    surface = light.shade(surface, view.distance)
    if light.headlights > 0:
        surface *= _headlight_cone(view, light)
    canvas.colour[:, area] = surface
    canvas.depth[area] = view.distance[:, None]
    road = np.zeros(canvas.depth.shape, bool)
    road[area] = np.take(drivable, cell)
    return GroundLabels(road, lane)


def _profile(layout: Layout, rng: np.random.Generator) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return colour ``[3, N]``, roughness and drivability ``[N]`` across the road, by cells."""
    s = (np.arange(int(2 * _REACH * _CELLS_PER_METRE)) + 0.5) / _CELLS_PER_METRE - _REACH
    colour, roughness = np.zeros((3, len(s)), np.float32), np.zeros(len(s), np.float32)
    for zone in layout.zones:
        inside = (s >= zone.start) & (s < zone.end)
        colour[:, inside] = np.asarray(zone.colour, np.float32)[:, None]
        roughness[inside] = zone.roughness
    # Wheels polish or darken two tracks in each lane.
    strength = rng.uniform(-0.15, 0.08)
    for lane in layout.lanes:
        if not lane.parked:
            tracks = np.exp(-(((np.abs(s - lane.s) - 0.8) / 0.35) ** 2))
            colour *= (1 + strength * tracks).astype(np.float32)
    drivable = (s >= layout.drivable[0]) & (s < layout.drivable[1])
    return colour, roughness, drivable


def _cells(
    texture: Floats, view: View, cell: NDArray[np.int32], rng: np.random.Generator, *, shift: int
) -> Floats:
    """Look a texture up in road coordinates, ``2**shift`` cells of 5 cm to a texel."""
    mask = noise.TEXTURE_SIZE - 1
    along = (view.distance * np.float32(_CELLS_PER_METRE)).astype(np.int32) >> shift
    start, side = (int(x) for x in rng.integers(0, noise.TEXTURE_SIZE, 2))
    row = ((along + start) & mask) * noise.TEXTURE_SIZE
    values: Floats = np.take(texture.ravel(), row[:, None] + (((cell >> shift) + side) & mask))
    return values


def _texture(view: View, cell: NDArray[np.int32], rng: np.random.Generator) -> Floats:
    fine = _cells(noise.rough(), view, cell, rng, shift=0)
    # A far pixel averages over many texels.
    texture: Floats = fine * (1 / (1 + view.distance / 18))[:, None]
    return texture


def _shadows(view: View, cell: NDArray[np.int32], rng: np.random.Generator) -> Floats:
    """Return a factor that darkens patches, as trees and houses beside the road would."""
    amount = rng.uniform(-0.4, 2.2)
    patches = _cells(noise.smooth(), view, cell, rng, shift=3) - np.float32(amount)
    factor: Floats = 1 - np.float32(rng.uniform(0.3, 0.6)) * np.clip(3 * patches, 0, 1)
    return factor


def _headlight_cone(view: View, light: Light) -> Floats:
    """Return the factor by which own headlights favour the middle of the view."""
    ahead = view.lateral + view.course.centre(view.distance.astype(np.float64))[:, None].astype(
        np.float32
    )
    aside = ahead / (2.5 + 0.28 * view.distance)[:, None]
    share = np.float32(light.headlights / (light.headlights + float(light.ambient.mean()) * 2))
    factor: Floats = (1 - share) + share * np.exp(-(aside**2))
    return factor


def _strips_painted(marking: Marking, view: View) -> Floats:
    """Return which share of each row's strip of ground lies in a dash. Shape ``[R]``."""
    if marking.period == 0:
        return np.ones_like(view.distance)
    dash = marking.period * marking.painted

    def painted_up_to(z: Floats) -> Floats:
        whole, rest = np.divmod(z + marking.phase, marking.period)
        return np.asarray(whole * dash + np.minimum(rest, dash), np.float32)

    share = (painted_up_to(view.far) - painted_up_to(view.near)) / (view.far - view.near)
    shares: Floats = np.clip(share, 0, 1).astype(np.float32)
    return shares


def _band(view: View, s: float, reach: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return ground rows and columns of all pixels closer to ``s`` than ``reach`` metres, and some.

    A line touches few pixels; looking at no others makes lines cheap.
    """
    middle = (s - view.lateral[:, 0]) / view.metres
    extent = reach / view.metres
    first = np.floor(middle - extent).astype(np.intp) - 1
    columns = first[:, None] + np.arange(int(np.ceil(2 * extent.max())) + 3)
    rows, places = np.nonzero((columns >= 0) & (columns < view.width))
    return rows, columns[rows, places]


def _paint_line(surface: Floats, marking: Marking, view: View, wear: Floats) -> None:
    """Blend a line in, by the exact share of each pixel's width and of its row that it covers."""
    rows, columns = _band(view, marking.s, (view.metres + marking.width) / 2)
    lateral, metres = view.lateral[rows, columns], view.metres[rows]
    left = np.maximum(lateral - metres / 2, marking.s - marking.width / 2)
    right = np.minimum(lateral + metres / 2, marking.s + marking.width / 2)
    coverage = np.maximum(right - left, 0) / metres * _strips_painted(marking, view)[rows]
    paint = coverage * np.clip(1.25 - marking.wear * (1.3 + wear[rows, columns]), 0.1, 1)
    for channel, value in zip(surface, marking.colour, strict=True):
        under = channel[rows, columns]
        channel[rows, columns] = under + paint * (np.float32(value) - under)


def _line_label(marking: Marking, view: View, last: float) -> NDArray[np.bool_]:
    """Return the label of a line on the ground rows. Shape ``[R, W]``.

    A row counts as painted when half of its strip is, or when dashes follow each other within less
    than four rows, where no gap can be seen.
    """
    strips = view.far - view.near
    painted = (_strips_painted(marking, view) >= 0.5) | (4 * strips > marking.period)
    painted &= view.distance < last
    half = np.maximum(marking.width, LANE_WIDTH * view.width / 320 * view.metres) / 2
    rows, columns = _band(view, marking.s, half)
    near = np.abs(view.lateral[rows, columns] - np.float32(marking.s)) <= half[rows]
    label = np.zeros(view.lateral.shape, bool)
    label[rows, columns] = near & painted[rows]
    return label


def _last_lane_distance(view: View, light: Light) -> float:
    """Return the distance beyond which lane lines are not labelled, in metres."""
    spacing = LANE_SPACING * view.width / 320
    narrow = 3.5 * view.focal / spacing
    z = np.linspace(5, 200, 79, dtype=np.float32)
    lit = light.illumination(z).mean(axis=0)
    visible = light.clarity(z) * np.minimum(lit / 0.45, 1)
    dark = z[visible < LANE_CLARITY]
    return min(narrow, float(dark[0]) if len(dark) else narrow)


def _paint_crossing(surface: Floats, layout: Layout, view: View, rng: np.random.Generator) -> None:
    """Paint zebra stripes across the road: paint that is no lane line."""
    assert layout.crossing is not None
    rows = (view.distance > layout.crossing) & (view.distance < layout.crossing + 3.0)
    s = view.lateral[rows]
    stripes = (np.mod(s, 1.0) < 0.5) & (s > layout.paved[0] + 0.3) & (s < layout.paved[1] - 0.3)
    strength = np.float32(rng.uniform(0.5, 0.95)) * stripes
    surface[:, rows] += strength * (np.float32(0.85) - surface[:, rows])
