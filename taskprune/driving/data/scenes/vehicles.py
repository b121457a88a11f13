"""What vehicles there are and where they stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taskprune.driving.data.scenes.geometry import View
from taskprune.driving.data.scenes.layout import Lane, Layout

MOST_VEHICLES = 7
FARTHEST_VEHICLE = 62.0
"""Metres; a car beyond this is smaller than the least labelled box."""


@dataclass(frozen=True)
class Body:
    """Shape of a kind of vehicle.

    Attributes:
        kind: Name.
        width: Least and greatest, metres.
        height: Least and greatest, metres.
        length: Least and greatest, metres.
        shoulder: Height where the cabin starts, as a share of the height.
        taper: Half width of the roof as a share of the half width of the body.
        hood: Length of hood and boot in front of and behind the cabin, shares of the length.
        screens: Length over which the front and the rear screen rise, shares of the length.
        share: Relative frequency.
    """

    kind: str
    width: tuple[float, float]
    height: tuple[float, float]
    length: tuple[float, float]
    shoulder: float
    taper: float
    hood: tuple[float, float]
    screens: tuple[float, float]
    share: float


BODIES = (
    Body(
        "saloon",
        (1.72, 1.88),
        (1.38, 1.52),
        (4.3, 4.9),
        0.60,
        0.70,
        (0.24, 0.14),
        (0.14, 0.11),
        0.34,
    ),
    Body(
        "hatchback",
        (1.68, 1.82),
        (1.42, 1.60),
        (3.7, 4.3),
        0.58,
        0.74,
        (0.22, 0.0),
        (0.14, 0.10),
        0.22,
    ),
    Body(
        "suv", (1.82, 1.98), (1.62, 1.88), (4.3, 4.9), 0.58, 0.80, (0.22, 0.0), (0.10, 0.05), 0.20
    ),
    Body("van", (1.90, 2.05), (1.90, 2.50), (4.8, 6.0), 0.52, 0.92, (0.04, 0.0), (0.06, 0.0), 0.10),
    Body("lorry", (2.35, 2.55), (2.9, 3.8), (7.0, 12.0), 0.30, 1.0, (0.0, 0.0), (0.0, 0.0), 0.09),
    Body("bus", (2.45, 2.55), (2.8, 3.2), (9.0, 12.0), 0.36, 0.98, (0.0, 0.0), (0.01, 0.0), 0.05),
)
_SHARES = np.array([body.share for body in BODIES])

_PAINTS = np.array(
    (
        (0.85, 0.85, 0.85),
        (0.62, 0.63, 0.65),
        (0.36, 0.37, 0.39),
        (0.06, 0.06, 0.07),
        (0.10, 0.11, 0.14),
        (0.55, 0.06, 0.06),
        (0.08, 0.16, 0.45),
        (0.10, 0.28, 0.20),
        (0.75, 0.55, 0.08),
        (0.50, 0.42, 0.32),
        (0.18, 0.35, 0.55),
    )
)
_PAINT_SHARES = np.array((0.2, 0.16, 0.14, 0.14, 0.06, 0.08, 0.08, 0.03, 0.04, 0.04, 0.03))


@dataclass(frozen=True)
class Vehicle:
    """One vehicle in world coordinates.

    Attributes:
        body: Its kind.
        width: Metres.
        height: Metres.
        length: Metres.
        x: Middle of the nearest face, metres right of the camera.
        y: Height of the road under it, metres.
        z: Distance of the nearest face, metres.
        yaw: Slope ``dx/dz`` of its long axis.
        front: Whether the face towards the camera is the front.
        broadside: Whether it stands across, showing its side.
        paint: RGB albedo.
        lit: Whether its lamps are on.
    """

    body: Body
    width: float
    height: float
    length: float
    x: float
    y: float
    z: float
    yaw: float
    front: bool
    broadside: bool
    paint: tuple[float, float, float]
    lit: bool


def draw_vehicles(
    rng: np.random.Generator, view: View, layout: Layout, *, dark: bool
) -> tuple[Vehicle, ...]:
    """Draw 0 to `MOST_VEHICLES` vehicles, farthest first."""
    wanted = int(rng.choice(MOST_VEHICLES + 1, p=(0.05, 0.08, 0.14, 0.20, 0.20, 0.16, 0.10, 0.07)))
    taken: dict[float, list[tuple[float, float]]] = {}
    vehicles = []
    for _ in range(wanted):
        lane = layout.lanes[int(rng.integers(0, len(layout.lanes)))]
        vehicle = _draw_vehicle(rng, view, lane, dark=dark)
        start, end = vehicle.z - 2.5, vehicle.z + vehicle.length + 2.5
        if all(end < a or start > b for a, b in taken.get(lane.s, [])):
            taken.setdefault(lane.s, []).append((start, end))
            vehicles.append(vehicle)
    if layout.kind != "motorway" and rng.random() < 0.3:
        vehicles.append(_draw_broadside(rng, view, layout, dark=dark))
    return tuple(sorted(vehicles, key=lambda vehicle: -vehicle.z))


def _draw_vehicle(rng: np.random.Generator, view: View, lane: Lane, *, dark: bool) -> Vehicle:
    # Between uniform in distance and uniform in image rows: near ones matter more.
    far = 40.0 if lane.parked else FARTHEST_VEHICLE
    z = float(lane.nearest * (far / lane.nearest) ** (rng.random() ** 0.85))
    s = lane.s + rng.normal(0, 0.12 if lane.parked else 0.3)
    course = view.course
    return _build(
        rng,
        at=(float(course.centre(z)) + s, float(course.elevation(z)), z),
        yaw=course.slope(z) + float(rng.normal(0, 0.01)),
        front=(lane.heading < 0) != (lane.parked and rng.random() < 0.25),
        broadside=False,
        lit=dark and not (lane.parked and rng.random() < 0.9),
    )


def _draw_broadside(rng: np.random.Generator, view: View, layout: Layout, *, dark: bool) -> Vehicle:
    """Draw a vehicle that stands across: in a side road or a car park."""
    z = float(rng.uniform(9, 32))
    side = int(rng.integers(0, 2))
    x = float(view.course.centre(z)) + layout.edges[side] + (2 * side - 1) * rng.uniform(2.2, 7)
    y = float(view.course.elevation(z))
    return _build(
        rng,
        at=(x, y, z),
        yaw=0.0,
        front=bool(rng.integers(0, 2)),
        broadside=True,
        lit=dark and rng.random() < 0.3,
    )


def _build(
    rng: np.random.Generator,
    *,
    at: tuple[float, float, float],
    yaw: float,
    front: bool,
    broadside: bool,
    lit: bool,
) -> Vehicle:
    body = BODIES[int(rng.choice(len(BODIES), p=_SHARES))]
    width, height, length = (
        float(rng.uniform(*span)) for span in (body.width, body.height, body.length)
    )
    paint = _PAINTS[int(rng.choice(len(_PAINTS), p=_PAINT_SHARES))] * rng.uniform(0.8, 1.15)
    red, green, blue = (float(c) for c in paint)
    x, y, z = at
    colour = (red, green, blue)
    return Vehicle(body, width, height, length, x, y, z, yaw, front, broadside, colour, lit)
