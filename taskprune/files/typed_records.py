"""Making records of parsed JSON, every field checked against its annotation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from taskprune.errors import InputError, short

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
        raise InputError(
            f"Expected {where} to have the fields {list(hints)}. Found {short(odd[0])}."
        )
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
