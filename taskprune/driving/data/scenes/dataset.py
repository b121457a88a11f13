"""A data set of procedural road scenes with exact labels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from taskprune.driving.data.sample import DrivingSample, check_size
from taskprune.driving.data.scenes.canvas import SCENERY, Canvas
from taskprune.driving.data.scenes.geometry import Camera, Course, View
from taskprune.driving.data.scenes.ground import paint_ground
from taskprune.driving.data.scenes.layout import draw_layout
from taskprune.driving.data.scenes.light import draw_light
from taskprune.driving.data.scenes.scenery import paint_sky, paint_things
from taskprune.driving.data.scenes.sensor import (
    expose,
    mirror_on_wet_road,
    paint_glare,
    paint_hood,
    paint_precipitation,
)
from taskprune.driving.data.scenes.vehicle_paint import paint_lamp_glow, paint_vehicle
from taskprune.driving.data.scenes.vehicles import draw_vehicles
from taskprune.driving.data.scenes.walls import paint_walls
from taskprune.errors import InputError

MIN_BOX_SIDE = 8.0
"""Least side of a labelled box, in pixels of a 320 pixel wide image."""
MIN_VISIBLE = 0.25
"""Least share of a vehicle's pixels inside the image that must be visible for it to be labelled."""


class RoadScenes(Dataset[DrivingSample]):
    """Drawn road scenes; sample ``i`` is a pure function of ``(seed, i, size)``.

    Each scene has its own camera, bends and hills, lanes and markings, houses, trees and
    distractors, vehicles, daytime and weather. Labels follow from the drawing and are exact:

    - ``drivable``: visible road surface between the borders of the lanes that the own direction may
      use. A solid or double line between the directions ends it; shoulders, parking rows, a second
      carriageway, and every pixel of a vehicle or obstacle are outside.
    - ``lane``: visible paint of lines along the road, dashes one by one, at least
      `ground.LANE_WIDTH` pixels wide, up to where lanes get too narrow or too dim to see. Zebra
      stripes and tar seams are no lane lines.
    - ``boxes``: smallest box around the visible pixels of each vehicle, parked ones included; left
      out if a side is under `MIN_BOX_SIDE` pixels (scaled with the image width) or less than
      `MIN_VISIBLE` of it shows.

    Args:
        n: Number of scenes.
        seed: Scenes of different seeds are independent.
        size: Width and height in pixels, multiples of 32.

    Raises:
        InputError: ``n`` is not positive, ``seed`` is negative, or ``size`` does not fit.
    """

    def __init__(self, n: int, *, seed: int, size: tuple[int, int] = (320, 192)) -> None:
        if n < 1:
            raise InputError(f"`n` must be at least 1 scene. Found {n!r}.")
        if seed < 0:
            raise InputError(f"`seed` must be at least 0. Found {seed!r}.")
        self.n, self.seed, self.size = n, seed, check_size(size)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> DrivingSample:
        if not -self.n <= index < self.n:
            raise IndexError(f"scene {index} of {self.n}")
        return draw_scene(np.random.default_rng((self.seed, index % self.n)), size=self.size)


def draw_scene(rng: np.random.Generator, *, size: tuple[int, int]) -> DrivingSample:
    """Draw one scene.

    Args:
        rng: All randomness comes from here.
        size: Width and height in pixels.
    """
    light = draw_light(rng)
    layout = draw_layout(rng, light)
    view = View(_draw_camera(rng), _draw_course(rng, layout.kind), size=size)
    vehicles = draw_vehicles(rng, view, layout, dark=light.lamps > 0 or light.weather == "fog")
    canvas = Canvas.blank(size=size)
    paint_sky(canvas, view, light, rng)
    ground = paint_ground(canvas, view, layout, light, rng)
    paint_walls(canvas, view, layout, light, rng)
    paint_things(canvas, view, layout, light, rng)
    pixels = [
        paint_vehicle(canvas, view, vehicle, light, number=number)
        for number, vehicle in enumerate(vehicles, start=1)
    ]
    mirror_on_wet_road(canvas, view, light, rng)
    for vehicle in vehicles:
        paint_lamp_glow(canvas, view, vehicle, light)
    paint_glare(canvas, view, light, rng)
    paint_precipitation(canvas, view, light, rng)
    paint_hood(canvas, view, light, rng)
    free = canvas.owner == SCENERY
    boxes = _visible_boxes(canvas.owner, pixels)
    image, road, lane = expose(canvas, light, rng), ground.drivable & free, ground.lane & free
    if rng.random() < 0.3:  # traffic that keeps to the left
        image, road, lane = image[..., ::-1], road[:, ::-1], lane[:, ::-1]
        boxes[:, 0] = 1 - boxes[:, 0]
    return DrivingSample(
        image=torch.from_numpy(np.ascontiguousarray(image)),
        boxes=torch.from_numpy(boxes),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        drivable=torch.from_numpy(road.astype(np.uint8)),
        lane=torch.from_numpy(lane.astype(np.uint8)),
    )


def _draw_camera(rng: np.random.Generator) -> Camera:
    return Camera(
        focal=float(rng.uniform(0.72, 1.1)),
        horizon=float(rng.uniform(0.34, 0.52)),
        height=float(rng.uniform(1.2, 1.8)),
    )


def _draw_course(rng: np.random.Generator, kind: str) -> Course:
    bend = {"motorway": 0.0012, "street": 0.0022, "country": 0.0045}[kind]
    flat = rng.random() < 0.4
    return Course(
        offset=float(rng.normal(0, 0.35)),
        heading=float(rng.normal(0, 0.03)),
        curvature=float(np.clip(rng.normal(0, bend), -2.5 * bend, 2.5 * bend)),
        curvature_rate=float(rng.normal(0, bend / 60)),
        hill=0.0 if flat else float(rng.uniform(-2.5, 2.5)),
        hill_length=float(rng.uniform(90, 220)),
    )


def _visible_boxes(owner: NDArray[np.int16], pixels: list[int]) -> NDArray[np.float32]:
    """Return the boxes of the vehicles that count, ``[n, 4]`` in centre form, 0 to 1."""
    height, width = owner.shape
    least = MIN_BOX_SIDE * width / 320
    boxes = []
    for number, total in enumerate(pixels, start=1):
        mine = owner == number
        visible = int(np.count_nonzero(mine))
        if not visible or visible < MIN_VISIBLE * total:
            continue
        rows, columns = np.flatnonzero(mine.any(axis=1)), np.flatnonzero(mine.any(axis=0))
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        left, right = int(columns[0]), int(columns[-1]) + 1
        if min(bottom - top, right - left) >= least:
            boxes.append(
                (
                    (left + right) / 2 / width,
                    (top + bottom) / 2 / height,
                    (right - left) / width,
                    (bottom - top) / height,
                )
            )
    return np.array(boxes, np.float32).reshape(-1, 4)
