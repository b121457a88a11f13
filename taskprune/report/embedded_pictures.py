"""Pictures inside of a page, so that it stays one file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from taskprune.errors import InputError, short

STARTS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
"""How files of each kind begin."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what it shows; ``address`` holds all of it."""

    caption: str
    address: str


def embedded(pictures: Mapping[str, str | Path]) -> tuple[Picture, ...]:
    """Read pictures.

    Args:
        pictures: ``{caption: PNG or JPEG file}``.

    Raises:
        InputError: It is something else, or a file cannot be read or is of another kind.
    """
    if not isinstance(pictures, Mapping):
        raise InputError(
            "`pictures` must be files by caption, such as {'Labels and student': "
            f"'predictions.png'}}. Found {type(pictures).__name__}."
        )
    return tuple(Picture(str(caption), _address(file)) for caption, file in pictures.items())


def _address(file: str | Path) -> str:
    try:
        content = Path(file).read_bytes()
    except (OSError, TypeError) as error:
        raise InputError(
            f"Expected the file of a picture. {short(file)} cannot be read ({error})."
        ) from error
    kind = next((kind for start, kind in STARTS.items() if content.startswith(start)), None)
    if kind is None:
        raise InputError(f"Expected a PNG or JPEG file. `{file}` holds something else.")
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
