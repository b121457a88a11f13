"""What a scene is painted on: colour, distance and owner of every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskprune.driving.data.scenes.noise import Floats

SCENERY = 0
"""Owner of sky, ground and all else that is neither a vehicle nor in front of the ground."""
OBSTACLE = -1
"""Owner of walls, poles, trees and other things that hide the ground but are no vehicles."""


@dataclass
class Canvas:
    """Image and buffers, painted in place.

    Attributes:
        colour: RGB, nominally in [0, 1]. Shape ``[3, H, W]``.
        depth: Distance in metres of what the pixel shows. Shape ``[H, W]``.
        owner: `SCENERY`, `OBSTACLE`, or the number (1, 2, ...) of a vehicle. Shape ``[H, W]``.
    """

    colour: Floats
    depth: Floats
    owner: NDArray[np.int16]

    @classmethod
    def blank(cls, *, size: tuple[int, int]) -> Canvas:
        """Return an empty canvas: black, infinitely far, owned by the scenery."""
        width, height = size
        return cls(
            np.zeros((3, height, width), np.float32),
            np.full((height, width), np.inf, np.float32),
            np.zeros((height, width), np.int16),
        )

    def window(self, rows: tuple[float, float], columns: tuple[float, float]) -> Window | None:
        """Return the whole pixels that touch a box given by borders, or ``None`` if outside."""
        height, width = self.depth.shape
        top, bottom = max(0, int(np.floor(rows[0]))), min(height, int(np.ceil(rows[1])))
        left, right = max(0, int(np.floor(columns[0]))), min(width, int(np.ceil(columns[1])))
        if top >= bottom or left >= right:
            return None
        return Window(self, slice(top, bottom), slice(left, right))


@dataclass(frozen=True)
class Window:
    """A rectangle of a canvas.

    Attributes:
        canvas: What is painted on.
        rows: Rows of the canvas.
        columns: Columns of the canvas.
    """

    canvas: Canvas
    rows: slice
    columns: slice

    @property
    def area(self) -> tuple[slice, slice]:
        """Index of the pixels."""
        return self.rows, self.columns

    @property
    def planes(self) -> tuple[slice, slice, slice]:
        """Index of the pixels in all colours."""
        return slice(None), self.rows, self.columns

    @property
    def v(self) -> Floats:
        """Middles of the rows as a column vector. Shape ``[h, 1]``."""
        middles: Floats = np.arange(self.rows.start, self.rows.stop, dtype=np.float32)
        middle: Floats = middles[:, None] + np.float32(0.5)
        return middle

    @property
    def u(self) -> Floats:
        """Middles of the columns. Shape ``[w]``."""
        middles: Floats = np.arange(self.columns.start, self.columns.stop, dtype=np.float32)
        middle: Floats = middles + np.float32(0.5)
        return middle

    def paint(self, colour: Floats, mask: NDArray[np.bool_], *, depth: float, owner: int) -> None:
        """Paint where ``mask`` holds and nothing nearer is there.

        Args:
            colour: Broadcasts to ``[3, h, w]``.
            mask: Shape ``[h, w]``.
            depth: Metres; the distance of the painted thing.
            owner: Who the painted pixels belong to.
        """
        canvas, area = self.canvas, self.area
        # Half a metre of slack: the ground right under a thing must not hide its foot.
        visible = mask & (canvas.depth[area] > depth - 0.5)
        np.copyto(canvas.colour[self.planes], colour, where=visible)
        np.copyto(canvas.depth[area], np.float32(depth), where=visible)
        np.copyto(canvas.owner[area], np.int16(owner), where=visible)
