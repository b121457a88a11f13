"""Time of day and weather: how bright a thing is at a distance, and how much air is before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taskprune.driving.data.scenes.noise import Floats

DAYTIMES = ("day", "dusk", "night")
WEATHERS = ("clear", "overcast", "rain", "fog", "snow")


@dataclass(frozen=True)
class Light:
    """Illumination of a scene.

    Attributes:
        daytime: One of `DAYTIMES`.
        weather: One of `WEATHERS`.
        ambient: RGB factor of everything that is lit by the sky. Shape ``[3]``.
        headlights: Strength of the camera car's own headlights.
        haze: RGB of the air. Shape ``[3]``.
        extinction: Share of contrast lost per metre of air, 1/m.
        zenith: RGB of the sky high up. Shape ``[3]``.
        skyline: RGB of the sky at the horizon. Shape ``[3]``.
        lamps: How strongly lamps and lit windows glow, 0 to 1.
    """

    daytime: str
    weather: str
    ambient: Floats
    headlights: float
    haze: Floats
    extinction: float
    zenith: Floats
    skyline: Floats
    lamps: float

    @property
    def sunny(self) -> bool:
        """Whether there are hard shadows."""
        return self.daytime == "day" and self.weather == "clear"

    def illumination(self, z: Floats) -> Floats:
        """Return the RGB factor at distances ``z``. Shape ``[3, *z.shape]``."""
        own = self.headlights * np.exp(-((z / 26.0) ** 2)) + self.headlights / (6 + z)
        extra = np.multiply.outer(np.array([1.0, 0.96, 0.86], np.float32), own)
        return np.asarray(extra + self.ambient.reshape(3, *[1] * np.ndim(z)), dtype=np.float32)

    def clarity(self, z: Floats) -> Floats:
        """Return the share of contrast that reaches the camera from distances ``z``."""
        share: Floats = np.exp(-self.extinction * np.asarray(z, np.float32)).astype(np.float32)
        return share

    def shade(self, albedo: Floats, z: Floats, *, glow: Floats | float = 0.0) -> Floats:
        """Return what the camera sees of a surface.

        Args:
            albedo: Shape ``[3, ...]``.
            z: Metres; its dims go with the first ones of ``albedo[0]`` and broadcast.
            glow: Light the surface gives off by itself; broadcasts with ``albedo``.
        """
        z = np.asarray(z, np.float32)
        z = z.reshape(z.shape + (1,) * (albedo.ndim - 1 - z.ndim))
        clear = self.clarity(z)
        lit = self.illumination(z) * clear
        air = self.haze.reshape(3, *[1] * (albedo.ndim - 1)) * (1 - clear)
        return np.asarray(albedo * lit + (glow * clear + air), dtype=np.float32)


def draw_light(rng: np.random.Generator) -> Light:
    """Draw daytime and weather: 62 % day, 16 % dusk, 22 % night; 42 % clear."""
    daytime = str(rng.choice(DAYTIMES, p=(0.62, 0.16, 0.22)))
    weather = str(rng.choice(WEATHERS, p=(0.42, 0.24, 0.14, 0.10, 0.10)))
    clear = weather == "clear"
    if daytime == "day":
        ambient = np.full(3, rng.uniform(0.85, 1.25) if clear else rng.uniform(0.65, 1.0))
        grey = rng.uniform(0.62, 0.95)
        zenith = np.array([0.25, 0.45, 0.80]) * rng.uniform(0.8, 1.2) if clear else np.full(3, grey)
        skyline = np.array([0.78, 0.86, 0.95]) if clear else np.full(3, min(1.0, grey + 0.08))
        headlights, lamps = 0.0, 0.0
    elif daytime == "dusk":
        ambient = np.array([0.50, 0.42, 0.42]) * rng.uniform(0.6, 1.1)
        zenith = np.array([0.20, 0.24, 0.42]) * rng.uniform(0.6, 1.3)
        skyline = np.array([0.92, 0.62, 0.42]) * rng.uniform(0.5, 1.05)
        if not clear:
            zenith, skyline = np.full(3, zenith.mean()), np.full(3, 0.75 * skyline.mean())
        headlights, lamps = rng.uniform(0.0, 0.35), rng.uniform(0.3, 0.8)
    else:
        ambient = np.array([0.16, 0.16, 0.20]) * rng.uniform(0.5, 1.6)
        ambient = ambient * (np.array([1.25, 1.0, 0.65]) if rng.random() < 0.5 else 1.0)
        zenith = np.array([0.02, 0.025, 0.05]) * rng.uniform(0.3, 2.5)
        skyline = np.array([0.10, 0.09, 0.10]) * rng.uniform(0.4, 1.8)
        headlights, lamps = rng.uniform(0.45, 1.0), 1.0
    extinction = {
        "clear": rng.uniform(0.0003, 0.0025),
        "overcast": rng.uniform(0.001, 0.004),
        "rain": rng.uniform(0.004, 0.014),
        "fog": rng.uniform(0.012, 0.038),
        "snow": rng.uniform(0.006, 0.018),
    }[weather]
    haze = 0.85 * skyline + 0.15 * zenith
    if weather == "fog":
        zenith = skyline = haze
    tint = rng.uniform(0.93, 1.07, 3)
    return Light(
        daytime,
        weather,
        (ambient * tint).astype(np.float32),
        float(headlights),
        haze.astype(np.float32),
        float(extinction),
        zenith.astype(np.float32),
        skyline.astype(np.float32),
        float(lamps),
    )
