"""The size of images that the driving nets take."""

from __future__ import annotations

from taskprune.errors import InputError

STRIDE = 32
"""Images are halved five times, so both sides must be multiples of this."""


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return ``(width, height)`` in pixels if both are positive multiples of `STRIDE`.

    Raises:
        InputError: They are not.
    """
    if len(size) != 2 or any(side < STRIDE or side % STRIDE for side in size):
        raise InputError(
            f"`size` must be (width, height) in pixels, both multiples of {STRIDE}. Found {size!r}."
        )
    width, height = size
    return int(width), int(height)
