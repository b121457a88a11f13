"""From light to picture: wet lens and air, glare, hood, focus, exposure, noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from taskprune.driving.data.scenes import noise
from taskprune.driving.data.scenes.canvas import OBSTACLE, Canvas
from taskprune.driving.data.scenes.geometry import View
from taskprune.driving.data.scenes.light import Light
from taskprune.driving.data.scenes.noise import Floats


def mirror_on_wet_road(canvas: Canvas, view: View, light: Light, rng: np.random.Generator) -> None:
    """Let a wet road mirror what stands above it. Only in rain."""
    strength = np.float32(rng.uniform(0.1, 0.35))
    if light.weather != "rain":
        return
    rows = np.arange(view.top, view.height)
    source = np.clip(view.top - (0.8 * (rows - view.top)).astype(int) - 1, 0, view.top)
    ground = (canvas.owner[view.top :] == 0).astype(np.float32) * strength
    below = canvas.colour[:, view.top :]
    below += ground * (canvas.colour[:, source] - below)


def paint_precipitation(canvas: Canvas, view: View, light: Light, rng: np.random.Generator) -> None:
    """Draw rain streaks or snow flakes."""
    count = int(rng.integers(20, 110))
    column, row = rng.random(count), rng.random(count)
    length = rng.uniform(2, 9, count) * view.height / 192
    if light.weather not in ("rain", "snow"):
        return
    snow = light.weather == "snow"
    bright = np.float32(0.4 + 0.5 * float(light.skyline.mean()))
    strength = np.float32(0.55 if snow else 0.22)
    for u, v, size in zip(column * view.width, row * view.height, length, strict=True):
        tall, wide = (max(1, round(size / 4)),) * 2 if snow else (round(size), 1)
        patch = canvas.colour[:, int(v) : int(v) + tall, int(u) : int(u) + wide]
        patch += strength * (bright - patch)


def paint_glare(canvas: Canvas, view: View, light: Light, rng: np.random.Generator) -> None:
    """Add the veil of a low sun, in some clear scenes by day or dusk."""
    chance, u, v = rng.random(), rng.uniform(0.05, 0.95), rng.uniform(-0.05, 0.35)
    strength, reach = rng.uniform(0.3, 1.0), rng.uniform(0.15, 0.4)
    if light.weather != "clear" or light.daytime == "night" or chance > 0.22:
        return
    x = (np.arange(view.width, dtype=np.float32) / view.width - np.float32(u)) / np.float32(reach)
    y = (np.arange(view.height, dtype=np.float32) / view.width - np.float32(v * 0.6)) / np.float32(
        reach
    )
    veil = np.float32(strength) / (1 + 4 * (y[:, None] ** 2 + x**2)) ** 2
    canvas.colour += np.array((1.0, 0.95, 0.8), np.float32)[:, None, None] * veil


def paint_hood(canvas: Canvas, view: View, light: Light, rng: np.random.Generator) -> None:
    """Let the camera car's own hood hide the lowest rows, in a quarter of the scenes."""
    chance, height, bend = rng.random(), rng.uniform(0.04, 0.12), rng.uniform(0.1, 0.4)
    middle, tone = rng.uniform(0.35, 0.65), rng.uniform(0.02, 0.5)
    if chance > 0.25:
        return
    x = np.arange(view.width, dtype=np.float32) / view.width - np.float32(middle)
    edge = view.height * (1 - height * (1 - bend * 8 * x**2))
    rows = np.arange(view.height - int(0.13 * view.height), view.height)[:, None]
    mask = rows > edge
    shine = np.clip(1.2 - (rows - edge) / (0.1 * view.height), 0.3, 1.2)
    albedo = np.float32(tone) * light.ambient[:, None, None] * shine.astype(np.float32)
    np.copyto(canvas.colour[:, rows[0, 0] :], albedo.astype(np.float32), where=mask)
    np.copyto(canvas.owner[rows[0, 0] :], np.int16(OBSTACLE), where=mask)


def expose(canvas: Canvas, light: Light, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the picture as the camera stores it. Shape ``[3, H, W]``."""
    image = canvas.colour
    blur, passes = rng.uniform(0.06, 0.24), 2 if rng.random() < 0.12 else 1
    for _ in range(passes):
        image = _blurred(image, np.float32(blur))
    gain = rng.uniform(0.85, 1.2, 3) ** 0.4 * rng.uniform(0.82, 1.22)
    contrast, dark = rng.uniform(0.85, 1.15), light.daytime != "day"
    deviation = rng.uniform(0.004, 0.016) * (2.0 if dark else 1.0)
    image *= (gain * contrast).astype(np.float32)[:, None, None]
    image += np.float32(0.5 * (1 - contrast) * (0.3 if dark else 1.0))
    height, width = image.shape[1:]
    for channel in image:
        channel += np.float32(deviation) * noise.cut(noise.white(), rng, height=height, width=width)
    image *= 255
    np.clip(image, 0, 255, out=image)
    return image.astype(np.uint8)


def _blurred(image: Floats, share: np.float32) -> Floats:
    """Return the image after a three by three binomial blur that gives ``share`` to each side."""
    rows = image * (1 - 2 * share)
    rows[:, 1:] += share * image[:, :-1]
    rows[:, :-1] += share * image[:, 1:]
    rows[:, 0] += share * image[:, 0]
    rows[:, -1] += share * image[:, -1]
    both: Floats = rows * (1 - 2 * share)
    both[:, :, 1:] += share * rows[:, :, :-1]
    both[:, :, :-1] += share * rows[:, :, 1:]
    both[:, :, 0] += share * rows[:, :, 0]
    both[:, :, -1] += share * rows[:, :, -1]
    return both
