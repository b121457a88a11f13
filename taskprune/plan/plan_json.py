"""Plans as JSON: a record a line, read back only where every part fits the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from taskprune.errors import InputError, short
from taskprune.files import as_record, as_type, parse_json, sealed, unsealed
from taskprune.plan.decisions import AttributeChange, GroupDecision, KeptAttribute, KeptEntries
from taskprune.plan.rationale import FrozenDecision, GroupRationale
from taskprune.plan.tables import numbers_in, ranges_text
from taskprune.replace import ModuleReplacement

FORMAT = 2
"""Version of the layout."""

MAX_NUMBERS = 2**25
"""Channel numbers in all that a plan may spell out, those that it repeats counted once."""

_PLAIN = {
    "attributes": AttributeChange,
    "replacements": ModuleReplacement,
    "frozen": FrozenDecision,
    "rationale": GroupRationale,
    "kept_attributes": KeptAttribute,
}
_PAIRS = {"shapes": tuple[int, ...], "costs": tuple[int, int]}
_SECTIONS = {"format", "groups", "tensors", "activations", *_PAIRS, *_PLAIN}

_Ranged = TypeVar("_Ranged", GroupDecision, KeptEntries)


def plan_text(parts: Mapping[str, Any]) -> str:
    """Return the fields of a plan as JSON, channels as ranges (``"0-3 7"``), under a checksum."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "groups": [{**_as_dict(d), "drop": ranges_text(d.drop)} for d in parts["groups"]],
        "tensors": [{**_as_dict(k), "keep": ranges_text(k.keep)} for k in parts["tensors"]],
        "activations": [{**_as_dict(k), "keep": ranges_text(k.keep)} for k in parts["activations"]],
        **{key: [[name, *numbers] for name, numbers in parts[key].items()] for key in _PAIRS},
        **{key: [asdict(record) for record in parts[key]] for key in _PLAIN},
    }
    lines = []
    for key, value in sealed(content).items():
        shown = json.dumps(value)
        if isinstance(value, list):
            shown = "[\n" + ",\n".join(json.dumps(record) for record in value) + "\n]"
        lines.append(f'"{key}": {shown}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def plan_parts(text: str | bytes) -> dict[str, Any]:
    """Return the fields of the plan that :func:`plan_text` wrote.

    Raises:
        InputError: It is no such text, was changed, or its parts do not fit each other.
    """
    content = parse_json(text)
    found = content.get("format") if isinstance(content, dict) else None
    if type(found) is int and found != FORMAT:
        raise InputError(f"It has format {found}; this version of taskprune reads {FORMAT}.")
    content = unsealed(content)
    if odd := sorted(content.keys() ^ _SECTIONS):
        raise InputError(f"Expected the sections {sorted(_SECTIONS)}. They differ by {odd[0]!r}.")
    numbers = _Numbers()
    parts: dict[str, Any] = {
        key: tuple(as_record(kind, r, where) for where, r in _records(content, key))
        for key, kind in _PLAIN.items()
    }
    for key, values in _PAIRS.items():
        pairs = (_pair(values, record, where) for where, record in _records(content, key))
        parts[key] = _by_name(pairs, key)
    parts["groups"] = tuple(
        numbers.filled(GroupDecision, record, where, "drop", "n_channels")
        for where, record in _records(content, "groups")
    )
    for key in ("tensors", "activations"):
        parts[key] = tuple(
            numbers.filled(KeptEntries, record, where, "keep", "size")
            for where, record in _records(content, key)
        )
    _check_fit(parts)
    return parts


class _Numbers:
    """Spells out ranges; equal ones become one tuple, and all of them have a limit."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[int, ...]] = {}
        self._left = MAX_NUMBERS

    def filled(
        self, kind: type[_Ranged], record: Any, where: str, ranges: str, size: str
    ) -> _Ranged:
        if not isinstance(record, dict):
            raise InputError(f"Expected {where} to be an object. Found {short(record)}.")
        text = as_type(str, record.get(ranges), f"`{ranges}` of {where}")
        below = as_type(int, record.get(size), f"`{size}` of {where}")
        if (text, below) not in self._known:
            try:
                numbers = numbers_in(text, below, most=self._left)
            except ValueError as error:
                raise InputError(
                    f"Expected `{ranges}` of {where} to be ranges that ascend within 0 to "
                    f"{below - 1}. {error}."
                ) from error
            self._left -= len(numbers)
            self._known[text, below] = numbers
        return as_record(kind, record, where, **{ranges: self._known[text, below]})


def _records(content: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    records = content[key]
    if not isinstance(records, list):
        raise InputError(f"Expected `{key}` to be a list. Found {short(records)}.")
    return [(f"{key}[{number}]", record) for number, record in enumerate(records)]


def _pair(kind: Any, record: Any, where: str) -> tuple[str, tuple[int, ...]]:
    if not isinstance(record, list) or not record:
        raise InputError(f"Expected {where} to be a name and numbers. Found {short(record)}.")
    name: str = as_type(str, record[0], f"the name of {where}")
    numbers: tuple[int, ...] = as_type(kind, record[1:], f"the numbers of {where}")
    if min(numbers, default=0) < 0:
        raise InputError(f"Expected {where} to hold no number below 0. Found {short(record)}.")
    return name, numbers


def _by_name(pairs: Any, key: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"Expected each name in `{key}` once. Found {short(name)} again.")
        found[name] = value
    return found


def _check_fit(parts: Mapping[str, Any]) -> None:
    """Check what the types cannot say."""
    _by_name(((group.name, None) for group in parts["groups"]), "groups")
    for group in parts["groups"]:
        if len(group.drop) >= group.n_channels:
            raise InputError(
                f"Expected group `{group.name}` to keep a channel. Found {len(group.drop)} of "
                f"{group.n_channels} dropped."
            )
    for key in ("tensors", "activations"):
        _by_name((((kept.name, kept.dim), None) for kept in parts[key]), key)
    for kept in parts["tensors"]:
        shape = parts["shapes"].get(kept.name)
        if shape is None or not 0 <= kept.dim < len(shape) or shape[kept.dim] != kept.size:
            raise InputError(
                f"Expected the tensors of `shapes`. Found `{kept.name}` of size {kept.size} along "
                f"dim {kept.dim}, where the shape is {shape}."
            )
    for stored in (*parts["attributes"], *parts["kept_attributes"]):
        if not stored.path or not isinstance(stored.path[0], str):
            raise InputError(
                f"Expected a path that begins with an attribute's name. Found {stored.path} in "
                f"`{stored.module}`."
            )


def _as_dict(record: GroupDecision | KeptEntries) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}
