"""The cross-section of a street: lanes, markings, ground zones, walls, and what may be driven on.

All positions are road coordinates ``s``: metres to the right of the middle of the own lane, for
traffic that keeps to the right (scenes for the other side are mirrored as a whole).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taskprune.driving.data.scenes.light import Light

KINDS = ("motorway", "street", "country")

WHITE = (0.90, 0.90, 0.88)
YELLOW = (0.86, 0.62, 0.12)


@dataclass(frozen=True)
class Marking:
    """A painted line along the road.

    Attributes:
        s: Middle of the line.
        width: Metres.
        colour: RGB albedo.
        period: Metres from one dash to the next; 0 for a solid line.
        painted: Share of the period that is painted.
        phase: Metres by which the dashes are shifted.
        wear: Share of the paint that is gone, 0 to 1.
    """

    s: float
    width: float
    colour: tuple[float, float, float]
    period: float = 0.0
    painted: float = 1.0
    phase: float = 0.0
    wear: float = 0.2


@dataclass(frozen=True)
class Zone:
    """A strip of ground from ``start`` to ``end``.

    Attributes:
        start: Left border.
        end: Right border.
        colour: RGB albedo.
        roughness: Amplitude of the surface texture, as a share of the colour.
    """

    start: float
    end: float
    colour: tuple[float, float, float]
    roughness: float


@dataclass(frozen=True)
class Lane:
    """Where vehicles may stand.

    Attributes:
        s: Middle of the lane.
        heading: 1: same direction as the camera; -1: towards it.
        parked: Whether this is a row of parked vehicles, off the lanes.
        nearest: Closest distance in metres of a vehicle here.
    """

    s: float
    heading: int
    parked: bool = False
    nearest: float = 5.0


@dataclass(frozen=True)
class Wall:
    """An upright face along the road.

    Attributes:
        s: Where it stands.
        kind: ``"houses"``, ``"trees"`` or ``"barrier"``.
    """

    s: float
    kind: str


@dataclass(frozen=True)
class Layout:
    """All of a street's cross-section.

    Attributes:
        kind: One of `KINDS`.
        markings: Lane lines, in the order they are painted.
        seams: Dark tar lines along the road; they are no lane lines.
        zones: Ground, later ones on top.
        drivable: Left and right border of what the own direction may drive on.
        paved: Left and right border of everything paved in one piece.
        lanes: Own and oncoming lanes and parking rows.
        walls: Faces that may hide the ground behind them.
        crossing: Distance of a zebra crossing in metres, or ``None``.
        edges: Where poles and trees stand: left and right.
    """

    kind: str
    markings: tuple[Marking, ...]
    seams: tuple[Marking, ...]
    zones: tuple[Zone, ...]
    drivable: tuple[float, float]
    paved: tuple[float, float]
    lanes: tuple[Lane, ...]
    walls: tuple[Wall, ...]
    crossing: float | None
    edges: tuple[float, float]


def draw_layout(rng: np.random.Generator, light: Light) -> Layout:
    """Draw a street; ``light`` decides on snow."""
    kind = str(rng.choice(KINDS, p=(0.36, 0.44, 0.20)))
    ahead, oncoming = _lane_counts(rng, kind)
    width = rng.uniform(3.3, 3.8) if kind == "motorway" else rng.uniform(2.8, 3.5)
    own = int(rng.integers(0, ahead))
    left, right = -(own + 0.5) * width, (ahead - own - 0.5) * width
    far_left = left - oncoming * width
    lanes = [Lane((j - own) * width, 1, nearest=9.0 if j == own else 5.0) for j in range(ahead)]
    lanes += [Lane(left - (j + 0.5) * width, -1, nearest=6.0) for j in range(oncoming)]

    marked = kind != "country" or rng.random() < 0.6
    line = _Pen(rng, motorway=kind == "motorway")
    markings = [line.dashed(left + j * width) for j in range(1, ahead)]
    crossable = True
    if oncoming:
        centre, crossable = line.centre(left, rng, marked=marked)
        markings += centre
    if kind == "motorway" or (marked and rng.random() < 0.7):
        colour = YELLOW if kind == "motorway" and rng.random() < 0.5 else WHITE
        markings += [line.solid(far_left + 0.1, colour), line.solid(right - 0.1, WHITE)]
    drivable = (far_left if oncoming and crossable else left, right)

    shoulder = rng.uniform(0.5, 2.8) if kind == "motorway" else rng.uniform(0.0, 0.6)
    parking = kind == "street" and rng.random() < 0.45
    outer = right + (rng.uniform(2.0, 2.4) if parking else shoulder)
    outer_left = far_left - (rng.uniform(1.9, 2.3) if parking and oncoming else 0.6 * shoulder)
    if parking:
        lanes.append(Lane(right + 1.0, 1, parked=True, nearest=4.5))
        if oncoming:
            lanes.append(Lane(far_left - 1.0, -1, parked=True, nearest=4.5))
    zones, lanes_beyond = _ground(rng, kind, (far_left, right), (outer_left, outer), light)
    seams = [
        Marking(rng.uniform(far_left, right), rng.uniform(0.04, 0.1), (0.08, 0.08, 0.08), wear=0.3)
        for _ in range(int(rng.choice(3, p=(0.5, 0.3, 0.2))))
    ]
    return Layout(
        kind,
        tuple(markings),
        tuple(seams),
        zones,
        drivable,
        (outer_left, outer),
        (*lanes, *lanes_beyond),
        _walls(rng, kind, (outer_left, outer)),
        float(rng.uniform(6, 30)) if kind == "street" and rng.random() < 0.2 else None,
        (outer_left - rng.uniform(0.6, 2.0), outer + rng.uniform(0.6, 2.0)),
    )


def _lane_counts(rng: np.random.Generator, kind: str) -> tuple[int, int]:
    if kind == "motorway":
        return int(rng.integers(2, 5)), 0
    if kind == "street":
        ahead = int(rng.integers(1, 3))
        return ahead, int(rng.integers(0, 3)) if ahead > 1 else int(rng.integers(1, 3))
    return 1, int(rng.random() < 0.75)


class _Pen:
    """Draws lines of one painting style: width, dash pattern, wear."""

    def __init__(self, rng: np.random.Generator, *, motorway: bool) -> None:
        self.width = rng.uniform(0.13, 0.22) if motorway else rng.uniform(0.10, 0.17)
        self.period = rng.uniform(9, 14) if motorway else rng.uniform(4, 10)
        self.painted = rng.uniform(0.3, 0.6)
        self.phase = rng.uniform(0, 14)
        self.wear = float(rng.beta(1.2, 3.0)) * 0.8

    def solid(self, s: float, colour: tuple[float, float, float]) -> Marking:
        return Marking(s, self.width, colour, wear=self.wear)

    def dashed(self, s: float, colour: tuple[float, float, float] = WHITE) -> Marking:
        return Marking(s, self.width, colour, self.period, self.painted, self.phase, self.wear)

    def centre(
        self, s: float, rng: np.random.Generator, *, marked: bool
    ) -> tuple[list[Marking], bool]:
        """Return the lines between the directions, and whether they may be crossed."""
        if not marked:
            return [], True
        colour = YELLOW if rng.random() < 0.6 else WHITE
        style = rng.random()
        if style < 0.35:
            return [self.dashed(s, colour)], True
        if style < 0.60:
            return [self.solid(s, colour)], False
        return [
            self.solid(s - 1.1 * self.width, colour),
            self.solid(s + 1.1 * self.width, colour),
        ], False


def _ground(
    rng: np.random.Generator,
    kind: str,
    lanes: tuple[float, float],
    paved: tuple[float, float],
    light: Light,
) -> tuple[tuple[Zone, ...], list[Lane]]:
    """Return the ground strips from the fields inwards, and lanes on a second carriageway."""
    snow = light.weather == "snow"
    grass = rng.uniform((0.55, 0.9, 0.35), (0.9, 1.0, 0.5)) * rng.uniform(0.20, 0.42)
    dirt = rng.uniform((0.95, 0.82, 0.60), (1.0, 0.90, 0.72)) * rng.uniform(0.30, 0.58)
    white = np.array((0.86, 0.88, 0.92)) * rng.uniform(0.85, 1.05)
    verge = white if snow else (grass if rng.random() < 0.7 else dirt)
    stone = white * 0.9 if snow and rng.random() < 0.7 else np.full(3, rng.uniform(0.38, 0.66))
    tone = rng.uniform(0.17, 0.48) * rng.uniform(0.96, 1.04, 3)
    if snow and rng.random() < 0.5:
        tone = 0.55 * tone + 0.45 * white
    rough = rng.uniform(0.04, 0.14)
    zones = [_zone(-60.0, 60.0, verge, 0.22)]
    beyond: list[Lane] = []
    if kind == "motorway" and rng.random() < 0.65:  # a second carriageway behind a median
        gap, width = rng.uniform(1.5, 7.0), rng.uniform(7.0, 11.0)
        zones.append(_zone(paved[0] - gap - width, paved[0] - gap, tone * 1.05, rough))
        beyond = [Lane(paved[0] - gap - part * width, -1, nearest=8.0) for part in (0.25, 0.7)]
    if kind == "street":
        walk = rng.uniform(1.5, 4.5)
        zones.append(_zone(paved[0] - walk, paved[1] + walk, stone, 0.07))
        zones.append(_zone(paved[0] - 0.2, paved[1] + 0.2, stone * 1.15, 0.05))
    zones.append(_zone(*paved, tone * rng.uniform(0.82, 1.2), 1.3 * rough))
    zones.append(_zone(*lanes, tone, rough))
    return tuple(zones), beyond


def _zone(start: float, end: float, colour: np.ndarray, roughness: float) -> Zone:
    red, green, blue = (float(c) for c in np.clip(colour, 0, 1))
    return Zone(start, end, (red, green, blue), roughness)


def _walls(rng: np.random.Generator, kind: str, paved: tuple[float, float]) -> tuple[Wall, ...]:
    choices = {
        "motorway": (("open", "trees", "barrier"), (0.40, 0.30, 0.30)),
        "street": (("open", "trees", "houses"), (0.12, 0.28, 0.60)),
        "country": (("open", "trees", "houses"), (0.45, 0.50, 0.05)),
    }
    kinds, chances = choices[kind]
    walls = []
    for side, edge in ((-1.0, paved[0]), (1.0, paved[1])):
        wall = str(rng.choice(kinds, p=chances))
        reach = {"open": 0.0, "trees": 4.0, "barrier": 0.7, "houses": 3.5}[wall]
        distance = reach * rng.uniform(0.8, 3.0)
        if wall != "open":
            walls.append(Wall(float(edge + side * distance), wall))
    return tuple(walls)
