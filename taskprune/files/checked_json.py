"""JSON that anybody may have written: bounded, sealed, and made into records as annotated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from taskprune.errors import InputError, short

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


Record = TypeVar("Record")

LARGEST = 2**63
"""Integers lie below it, as in tensors."""


def as_record(kind: type[Record], content: Any, where: str, **given: Any) -> Record:
    """Make a record of a JSON object.

    Args:
        kind: A dataclass, with annotations as :func:`as_type` knows them.
        content: The object.
        where: What the object is, for messages.
        given: Fields that are at hand already, in place of those of the object.

    Raises:
        InputError: A field is missing, unknown, or of another type.
    """
    hints, needed = _fields_of(cast(Any, kind))
    if not isinstance(content, dict):
        raise InputError(f"Expected {where} to be an object. Found {short(content)}.")
    if odd := sorted(content.keys() - hints.keys()):
        raise InputError(f"Expected {where} to have the fields {list(hints)}. Found {odd[0]!r}.")
    values = dict(given)
    for name, value in content.items():
        if name not in given:
            values[name] = as_type(hints[name], value, f"`{name}` of {where}")
    if missing := needed - values.keys():
        raise InputError(f"Expected {where} to have `{sorted(missing)[0]}`. Found none.")
    return kind(**values)


def as_type(kind: Any, value: Any, where: str) -> Any:
    """Return parsed JSON as a type, lists as tuples.

    Args:
        kind: ``str``, ``bool``, ``int`` (of 64 bits), ``float``, ``None``, ``Any``, a dataclass,
            ``Literal`` words, or a union, tuple or mapping of these.
        value: What was parsed.
        where: What it is, for the message.

    Raises:
        InputError: It is of another type.
    """
    if type(value) is kind and (kind is not int or abs(value) < LARGEST):
        return value
    inner = get_args(kind)
    if kind is Any:
        return value
    if get_origin(kind) is Literal and isinstance(value, str) and value in inner:
        return value
    if is_dataclass(kind):
        return as_record(cast(type[Any], kind), value, where)
    if get_origin(kind) in (Union, UnionType):
        for choice in inner:
            with suppress(InputError):
                return as_type(choice, value, where)
    elif get_origin(kind) is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(kinds) == len(value):
            parts = enumerate(zip(kinds, value, strict=True))
            return tuple(as_type(part, item, f"{where}[{i}]") for i, (part, item) in parts)
    elif get_origin(kind) is Mapping and isinstance(value, dict):
        return {key: as_type(inner[1], item, f"{key!r} of {where}") for key, item in value.items()}
    elif kind is float and type(value) is int and abs(value) < LARGEST:
        return float(value)
    name = str(kind) if inner or kind is NoneType else kind.__name__
    raise InputError(f"Expected {where} to be {name}. Found {short(value)}.")


@cache
def _fields_of(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the type of each field, and the names of those without a default."""
    hints = get_type_hints(kind)
    own = [field for field in fields(kind) if field.init]
    needed = (f.name for f in own if f.default is MISSING and f.default_factory is MISSING)
    return {field.name: hints[field.name] for field in own}, frozenset(needed)
