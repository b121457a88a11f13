"""KITTI's text files: lines of words and numbers, all of them finite and of a sane size."""

from __future__ import annotations

import math
from pathlib import Path

from taskprune.errors import DataError

MAX_BYTES = 2**24
"""Largest text file: KITTI's have some thousand bytes."""

LIMIT = 1e6
"""Metres, pixels and factors lie below it, so that their products stay finite in float32."""


def read_lines(path: Path, what: str) -> list[str]:
    """Read a file of text.

    Args:
        path: The file.
        what: What it holds, for messages.

    Raises:
        DataError: It is missing, far too large, or no text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        return content.decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read the {what} `{path}`: {error}. Copy it again.") from error


def numbers_in(words: list[str]) -> list[float]:
    """Read numbers.

    Raises:
        ValueError: A word is none, or a number is not finite or beyond :data:`LIMIT`.
    """
    numbers = [float(word) for word in words]
    for number in numbers:
        if not (math.isfinite(number) and abs(number) <= LIMIT):
            raise ValueError(f"the number {number}")
    return numbers
