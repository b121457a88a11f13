"""Paint what stands around: sky, skyline, and single things beside the road."""

from __future__ import annotations

import numpy as np

from taskprune.driving.data.scenes import noise
from taskprune.driving.data.scenes.canvas import OBSTACLE, Canvas
from taskprune.driving.data.scenes.geometry import View
from taskprune.driving.data.scenes.layout import Layout
from taskprune.driving.data.scenes.light import Light
from taskprune.driving.data.scenes.noise import Floats


def paint_sky(canvas: Canvas, view: View, light: Light, rng: np.random.Generator) -> None:
    """Paint sky and a far skyline on everything above the ground."""
    top = view.top + 2
    height = np.linspace(1, 0, top, dtype=np.float32)[:, None] ** np.float32(0.7)
    sky = light.skyline[:, None, None] + height * (light.zenith - light.skyline)[:, None, None]
    clouds = np.clip(
        noise.cut(noise.smooth(), rng, height=top, width=view.width) - rng.uniform(-0.6, 1.4), 0, 1
    )
    strength = 0.5 if light.daytime != "night" else 0.08
    canvas.colour[:, :top] = sky + strength * clouds * (light.skyline[:, None, None] * 1.05 - sky)
    _paint_skyline(canvas, view, light, rng)


def _paint_skyline(canvas: Canvas, view: View, light: Light, rng: np.random.Generator) -> None:
    """Paint far hills, woods or a town as a ragged band above the ground."""
    scale = view.height / 192
    profile = noise.cut(noise.rough(), rng, height=1, width=view.width)[0]
    if rng.random() < 0.4:  # a town: steps instead of slopes
        step = int(rng.integers(6, 18))
        profile = np.repeat(profile[::step], step)[: view.width]
    height = (rng.uniform(1, 9) + rng.uniform(1, 6) * profile) * scale
    rows = np.arange(view.top + 2, dtype=np.float32)[:, None]
    mask = rows > view.top - height
    albedo = rng.uniform((0.10, 0.14, 0.10), (0.40, 0.42, 0.40)).astype(np.float32)
    distance = np.float32(rng.uniform(120, 350))
    colour = light.shade(albedo, distance)[:, None, None]
    np.copyto(canvas.colour[:, : view.top + 2], colour, where=mask)


def paint_things(
    canvas: Canvas, view: View, layout: Layout, light: Light, rng: np.random.Generator
) -> None:
    """Paint up to eight single trees, poles, signs and boxes beside the road, farthest first."""
    count = int(rng.integers(0, 9))
    distances = np.sort(rng.uniform(1 / 75, 1 / 7, count))  # even in image columns
    spread = 0.5 if layout.kind == "street" else 6.0
    for closeness in distances:
        z = float(1 / closeness)
        side = int(rng.integers(0, 2))
        s = layout.edges[side] + (2 * side - 1) * abs(rng.normal(0, spread))
        x, foot = float(view.course.centre(z)) + s, float(view.course.elevation(z))
        kind = rng.random()
        if kind < 0.35:
            _paint_tree(canvas, view, (x, foot, z), light, rng)
        elif kind < 0.85:
            _paint_pole(canvas, view, (x, foot, z), light, rng)
        else:
            _paint_box(canvas, view, (x, foot, z), light, rng)


def _paint_tree(
    canvas: Canvas,
    view: View,
    at: tuple[float, float, float],
    light: Light,
    rng: np.random.Generator,
) -> None:
    x, foot, z = at
    height, trunk = rng.uniform(4, 9), rng.uniform(1.2, 2.5)
    half = rng.uniform(0.3, 0.5) * (height - trunk)
    brown = np.full(3, rng.uniform(0.10, 0.25), np.float32)
    _paint_rectangle(
        canvas, view, (x - 0.14, x + 0.14), (foot, foot + trunk + 0.5), z, light, brown
    )
    window = canvas.window(
        (float(view.row(z, foot + height)), float(view.row(z, foot + trunk))),
        (float(view.column(z, x - half)), float(view.column(z, x + half))),
    )
    if window is None:
        return
    right = (window.u - view.column(z, x)) * (z / view.focal / half)
    up = (view.row(z, foot + (height + trunk) / 2) - window.v) * (z / view.focal)
    shape = noise.cut(noise.rough(), rng, height=len(window.v), width=len(window.u))
    mask = right**2 + (up / ((height - trunk) / 2)) ** 2 < 0.85 + 0.25 * shape
    bare = light.weather == "snow" or rng.random() < 0.15
    if bare:
        mask &= shape > 0.2
    leaf = rng.uniform((0.10, 0.16, 0.05), (0.24, 0.30, 0.13)) if not bare else brown
    albedo = np.asarray(leaf, np.float32)[:, None, None] * (1 + 0.3 * shape)
    window.paint(light.shade(albedo, np.float32(z)), mask, depth=z, owner=OBSTACLE)


def _paint_pole(
    canvas: Canvas,
    view: View,
    at: tuple[float, float, float],
    light: Light,
    rng: np.random.Generator,
) -> None:
    x, foot, z = at
    grey = np.full(3, rng.uniform(0.15, 0.6), np.float32)
    half = rng.uniform(0.04, 0.12)
    head = rng.random()
    height = rng.uniform(5, 9) if head < 0.5 else rng.uniform(2.2, 3.2)
    _paint_rectangle(canvas, view, (x - half, x + half), (foot, foot + height), z, light, grey)
    if head < 0.35:  # a street lamp
        arm = -np.sign(x) * rng.uniform(0.8, 2.0)
        ends = (min(x, x + arm), max(x, x + arm))
        _paint_rectangle(canvas, view, ends, (foot + height - 0.15, foot + height), z, light, grey)
        lamp = (min(ends, key=lambda e: -abs(e - x)), foot + height - 0.2)
        warm = np.array((1.6, 1.3, 0.8), np.float32) * light.lamps
        spot = (lamp[0] - 0.35, lamp[0] + 0.35)
        _paint_rectangle(canvas, view, spot, (lamp[1] - 0.15, lamp[1]), z, light, grey, warm)
    elif head > 0.5:  # a sign
        colours = ((0.7, 0.08, 0.08), (0.08, 0.2, 0.6), (0.05, 0.4, 0.2), (0.85, 0.85, 0.85))
        colour = np.array(colours[int(rng.integers(0, 4))], np.float32)
        wide, tall = rng.uniform(0.3, 0.6), rng.uniform(0.5, 1.0)
        sides, ends = (x - wide, x + wide), (foot + height - tall, foot + height)
        _paint_rectangle(canvas, view, sides, ends, z, light, colour)
        inner = (sides[0] + 0.3 * wide, sides[1] - 0.3 * wide)
        band = (ends[0] + 0.35 * tall, ends[1] - 0.35 * tall)
        pale = np.full(3, 0.85, np.float32)
        _paint_rectangle(canvas, view, inner, band, z, light, pale)


def _paint_box(
    canvas: Canvas,
    view: View,
    at: tuple[float, float, float],
    light: Light,
    rng: np.random.Generator,
) -> None:
    """Paint a container, kiosk or hut: the size of a vehicle, but with neither wheels nor lamps."""
    x, foot, z = at
    half, height = rng.uniform(0.5, 1.6), rng.uniform(0.9, 2.8)
    x += np.sign(x) * half
    colour = rng.uniform(0.08, 0.75, 3).astype(np.float32)
    sides, ends = (x - half, x + half), (foot, foot + height)
    _paint_rectangle(canvas, view, sides, ends, z, light, colour)
    lid = (ends[1] - 0.15 * height, ends[1])
    _paint_rectangle(canvas, view, sides, lid, z, light, 0.6 * colour)


def _paint_rectangle(
    canvas: Canvas,
    view: View,
    sides: tuple[float, float],
    ends: tuple[float, float],
    z: float,
    light: Light,
    albedo: Floats,
    glow: Floats | None = None,
) -> None:
    """Paint an upright rectangle that faces the camera; intervals of ``x`` and ``y`` in metres."""
    rows = (float(view.row(z, ends[1])), float(view.row(z, ends[0])))
    columns = (float(view.column(z, sides[0])), float(view.column(z, sides[1])))
    window = canvas.window(rows, columns)
    if window is None:
        return
    mask = (window.v > rows[0] - 0.3) & (window.v < rows[1]) & (window.u > columns[0] - 0.3)
    mask &= window.u < columns[1] + 0.3
    colour = light.shade(albedo, np.float32(z))[:, None, None]
    if glow is not None:
        colour = colour + glow[:, None, None]
    window.paint(colour, mask, depth=z, owner=OBSTACLE)
