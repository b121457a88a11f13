"""Reading JSON that anybody may have written: bounded before anything is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from taskprune.errors import InputError

MAX_BYTES = 100_000_000
"""As much as safetensors allows in a header, where plans lie in checkpoints."""

MAX_DEPTH = 100
"""Lists and objects inside one another; the recursion of a reader is bounded by this."""

MAX_VALUES = 10_000_000
"""Values in all: each takes tens of bytes, where two of text are enough to write one."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of at most :data:`MAX_BYTES`, :data:`MAX_DEPTH` and :data:`MAX_VALUES`.

    Raises:
        InputError: It is larger or deeper than that, no JSON, or repeats a key.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MAX_BYTES:
        raise InputError(f"Expected JSON of at most {MAX_BYTES:,} bytes. Found more.")
    depth, n_values = _extent(data)
    if depth > MAX_DEPTH or n_values > MAX_VALUES:
        raise InputError(
            f"Expected JSON of at most {MAX_VALUES:,} values, {MAX_DEPTH} deep. Found {n_values:,} "
            f"values, {depth} deep."
        )
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise InputError(f"Expected JSON. Found text that is none: {error}.") from error


def read_bytes(path: Path) -> bytes:
    """Read a file that is to be parsed, no further than :func:`parse_json` allows.

    Raises:
        OSError: It is missing or cannot be read.
    """
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _extent(data: bytes) -> tuple[int, int]:
    """Return how deep JSON goes and how many values it may have, without parsing it."""
    plain = np.frombuffer(data.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    # A count modulo 256 is as odd as the count itself.
    outside = np.cumsum(plain == ord('"'), dtype=np.uint8) % 2 == 0
    signs = plain[outside]
    opened = (signs == ord("[")) | (signs == ord("{"))
    n_values = 1 + int(np.count_nonzero(opened | (signs == ord(","))))
    if n_values > MAX_VALUES:
        return 0, n_values
    closed = (signs == ord("]")) | (signs == ord("}"))
    steps = np.where(opened, 1, -1)[opened | closed]
    return int(np.cumsum(steps).max(initial=0)), n_values


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has {next(n for n in names if names.count(n) > 1)!r} twice")
    return found
