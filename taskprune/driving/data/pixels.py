"""Decode image and mask files, and bring them to the size of the network."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskprune.errors import DataError, MissingDependencyError

MAX_PIXELS = 2**26
"""Largest image that is decoded: a small file can claim to hold any number."""


def image_library() -> Any:
    """Return Pillow's ``Image`` module.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "Reading and writing image files needs Pillow. "
            'Install it with `pip install "taskprune[driving]"`.'
        ) from error
    return Image


def read_image(path: Path, *, size: tuple[int, int]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode an RGB image and stretch it to a size.

    Args:
        path: JPEG or PNG file.
        size: Width and height to return.

    Returns:
        The image ``[3, height, width]`` and the width and height it has on disk.

    Raises:
        DataError: The file is missing or damaged.
    """
    library = image_library()
    picture = decoded(path)
    stretched = picture.convert("RGB").resize(size, library.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(stretched).transpose(2, 0, 1)), picture.size


def read_mask(path: Path, *, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode a mask of one byte a pixel, as it is on disk.

    Args:
        path: PNG file with grey or palette values.
        size: Width and height the mask must have: those of its image.

    Returns:
        Shape ``[height, width]``.

    Raises:
        DataError: The file is missing, damaged, has colours, or is of another size.
    """
    picture = decoded(path)
    if picture.mode not in ("L", "P"):
        raise DataError(
            f"{path}: expected a mask with one byte a pixel. Found a picture of mode "
            f"{picture.mode!r}. Use the files of BDD100K's `masks` folder, not of `colormaps`."
        )
    if picture.size != size:
        raise DataError(
            f"{path}: expected a mask of {size[0]} x {size[1]} pixels, the size of its image. "
            f"Found {picture.size[0]} x {picture.size[1]}. Make the mask anew from its image."
        )
    return np.asarray(picture)


def decoded(path: Path) -> Any:
    """Decode a JPEG or PNG file.

    Raises:
        DataError: The file is missing, damaged, of another kind, or too large.
    """
    library = image_library()
    try:
        # Of other kinds' decoders Pillow has dozens, and any bytes may pass for a file of theirs.
        with library.open(path, formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"it has {picture.width} x {picture.height} pixels")
            picture.load()
            return picture
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected an image file. Found none. Copy it there.") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        zlib.error,
        library.DecompressionBombError,
        library.DecompressionBombWarning,
    ) as error:
        raise DataError(
            f"{path}: expected a readable image file. Found a damaged one ({error}). "
            "Copy or download it again."
        ) from error


def shrink_area(mask: NDArray[np.bool_], *, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a mask of areas to ``[height, width]``: 1 where half of the pixel or more is."""
    library = image_library()
    grey = library.fromarray(mask.astype(np.uint8) * np.uint8(255))
    covered = np.asarray(grey.resize(size, library.Resampling.BOX))
    return (covered >= 128).astype(np.uint8)


def shrink_lines(mask: NDArray[np.bool_], *, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a mask of thin lines: a pixel is 1 where any of it is. Shape ``[height, width]``.

    A line thinner than a pixel would vanish under a majority rule; so it stays, at a pixel's width.
    """
    width, height = size
    pooled = _pooled(_pooled(mask.astype(np.uint8), height, axis=0), width, axis=1)
    return pooled


def _pooled(values: NDArray[np.uint8], n: int, *, axis: int) -> NDArray[np.uint8]:
    """Return the maxima over ``n`` equal, possibly overlapping stretches of an axis."""
    length = values.shape[axis]
    starts = np.arange(n) * length // n
    ends = -(-(np.arange(n) + 1) * length // n)
    # `reduceat` takes no end beyond the last entry, so one more entry of zeros follows.
    padded = np.concatenate((values, np.zeros_like(values.take([0], axis=axis))), axis=axis)
    stretches = np.stack((starts, ends), axis=1).ravel()
    maxima = np.maximum.reduceat(padded, stretches, axis=axis)
    pooled: NDArray[np.uint8] = maxima.take(np.arange(0, 2 * n, 2), axis=axis)
    return pooled
