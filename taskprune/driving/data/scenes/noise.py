"""Fixed noise textures that every scene cuts its own pieces from.

Drawing fresh noise for each pixel would cost more than the rest of a scene, so a few tileable
textures are made once per process from constant seeds, and a scene only draws where to cut.
"""

from __future__ import annotations

from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]

TEXTURE_SIZE = 1024
"""Side of the textures in pixels, a power of two so that indices wrap by a mask."""


@cache
def white() -> Floats:
    """Independent standard normal values. Shape ``[1024, 1024]``."""
    rng = np.random.default_rng(20240101)
    return rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE), dtype=np.float32)


@cache
def rough() -> Floats:
    """Noise with the spectrum of worn surfaces (amplitude ``~ 1/f``), mean 0, deviation 1."""
    return _coloured(seed=20240102, slope=1.0)


@cache
def smooth() -> Floats:
    """Noise of large soft patches (amplitude ``~ 1/f^1.8``), mean 0, deviation 1."""
    return _coloured(seed=20240103, slope=1.8)


def _coloured(*, seed: int, slope: float) -> Floats:
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE)))
    frequency = np.hypot(
        np.fft.fftfreq(TEXTURE_SIZE)[:, None], np.fft.rfftfreq(TEXTURE_SIZE)[None, :]
    )
    frequency[0, 0] = np.inf  # no constant part
    field = np.fft.irfft2(spectrum * frequency**-slope, s=(TEXTURE_SIZE, TEXTURE_SIZE))
    return np.ascontiguousarray(field / field.std(), dtype=np.float32)


def cut(texture: Floats, rng: np.random.Generator, *, height: int, width: int) -> Floats:
    """Return a random ``[height, width]`` piece of a tileable texture (a view where possible)."""
    top, left = (int(start) for start in rng.integers(0, TEXTURE_SIZE, 2))
    return _stretch(_stretch(texture, top, height, axis=0), left, width, axis=1)


def _stretch(texture: Floats, start: int, length: int, *, axis: int) -> Floats:
    """Return ``length`` entries of a tileable axis from ``start`` on."""
    copies = -(-(start + length) // TEXTURE_SIZE)
    if copies == 1:
        return texture[(slice(None),) * axis + (slice(start, start + length),)]
    # Gluing slices is several times faster than looking up wrapped indices.
    first = texture[(slice(None),) * axis + (slice(start, None),)]
    rest = [texture] * (copies - 2)
    last = texture[
        (slice(None),) * axis + (slice(0, start + length - (copies - 1) * TEXTURE_SIZE),)
    ]
    return np.concatenate([first, *rest, last], axis=axis)
