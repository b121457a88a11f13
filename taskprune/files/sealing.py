"""A checksum over all that a file says, so that what was changed since is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from taskprune.errors import InputError

SEAL = "sha256"
"""The entry that holds the checksum of all others."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add the checksum of content that JSON can hold.

    It is of the values: another order of keys, spaces and line ends do not matter.
    """
    return {**content, SEAL: _digest(content)}


def unsealed(content: Any) -> dict[str, Any]:
    """Return what :func:`sealed` was given.

    Raises:
        InputError: It was changed since, or never sealed.
    """
    if not isinstance(content, dict) or SEAL not in content:
        raise InputError(f"Expected content with its checksum, `{SEAL}`. Found none.")
    inside = {key: value for key, value in content.items() if key != SEAL}
    if _digest(inside) != content[SEAL]:
        raise InputError(
            "The content is not what was written: the checksum differs. Copy it again from where "
            "it came from."
        )
    return inside


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
