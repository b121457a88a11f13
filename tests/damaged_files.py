"""What can befall a file: flipped bits, cuts, wrong types, deep nesting, vast numbers."""

from __future__ import annotations

import json
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from taskprune.errors import TaskPruneError

Loaded = TypeVar("Loaded")

HOSTILE = (
    *("null", "true", "0", "-1", "7", "1.5", '""', '"x"', "[]", "{}", '{"a": "b"}', "[[1]]"),
    *("NaN", "-Infinity", "1e400", str(10**30), "9" * 400, "9" * 5000, '"\\ud800"', '"\\u0000"'),
    *('"0-999999999"', '"0-2000000000"', '"3-1"', '"0-1 0-1"', '"-"', '"\u0663"'),
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 100_000 + "1" + "}" * 100_000,
)
"""JSON values that do not belong where they are put."""

MEMBER, REPEATED = "@member@", "@repeated@"
SLOWEST_S = 5.0
"""No damage may take longer to see; generous, since machines are shared."""


def damaged_bytes(data: bytes, n: int, *, seed: int) -> Iterator[bytes]:
    """Yield ``n`` damaged copies: bits, bytes, cuts, holes and repeated stretches."""
    rng = random.Random(seed)
    for number in range(n):
        damaged = bytearray(data)
        place = rng.randrange(len(data))
        until = place + rng.randrange(1, 12)
        kind = number % 5
        if kind == 0:
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[place] = rng.randrange(256)
        elif kind == 2:
            del damaged[place:]
        elif kind == 3:
            del damaged[place:until]
        else:
            damaged[until:until] = damaged[place:until]
        yield bytes(damaged)


def damaged_json(value: Any, n: int, *, seed: int) -> Iterator[str]:
    """Yield ``n`` texts of a JSON value in which one member is replaced, removed or repeated."""
    rng = random.Random(seed)
    places = list(_places(value))
    for number in range(n):
        path = rng.choice(places)
        copy = json.loads(json.dumps(value))
        holder = copy
        for key in path[:-1]:
            holder = holder[key]
        key = path[-1]
        kind = number % 6
        if kind == 0:
            del holder[key]
            yield json.dumps(copy)
            continue
        other = rng.choice(HOSTILE)
        if kind == 1 and isinstance(holder, dict):
            holder[REPEATED] = MEMBER
            text = json.dumps(copy).replace(f'"{REPEATED}"', json.dumps(key))
        elif kind == 1:
            holder.insert(key, holder[key])
            text = json.dumps(copy)
        elif kind == 2 and isinstance(holder, dict):
            holder[f"{key}_"] = holder.pop(key)
            text = json.dumps(copy)
        else:
            holder[key] = _altered(holder[key], rng) if kind == 3 else MEMBER
            text = json.dumps(copy)
        yield text.replace(f'"{MEMBER}"', other)


def damaged_safetensors(data: bytes, n: int, *, seed: int) -> Iterator[bytes]:
    """Yield ``n`` damaged copies of a safetensors file, as many of its header as of the rest."""
    (length,) = struct.unpack("<Q", data[:8])
    head, body = data[: 8 + length], data[8 + length :]
    for damaged in damaged_bytes(head, n // 4, seed=seed):
        yield damaged + body
    for damaged in damaged_bytes(data, n // 4, seed=seed + 1):
        yield damaged
    header = json.loads(head[8:])
    for text in damaged_json(header, n // 4, seed=seed + 2):
        yield struct.pack("<Q", len(text.encode())) + text.encode() + body
    texts = header["__metadata__"]
    parsed = {key: json.loads(text) for key, text in texts.items() if text[:1] == "{"}
    for number, key in enumerate(sorted(parsed)):
        for text in damaged_json(parsed[key], n // 4 // len(parsed), seed=seed + 3 + number):
            changed = {**header, "__metadata__": {**texts, key: text}}
            new = json.dumps(changed).encode()
            yield struct.pack("<Q", len(new)) + new + body


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    members: Iterable[Any] = ()
    if isinstance(value, dict):
        members = value
    elif isinstance(value, list):
        members = range(len(value))
    for key in members:
        yield (*path, key)
        yield from _places(value[key], (*path, key))


def _altered(value: Any, rng: random.Random) -> Any:
    """Return another value of the same type, where there is one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + rng.choice((-1, 1, 2**31, 2**62))
    if isinstance(value, str):
        return value[: rng.randrange(len(value))] if value else "x"
    return value[::-1] if isinstance(value, list) and len(value) > 1 else MEMBER


def put(path: Path, data: bytes) -> None:
    """Write a file anew; many file systems first put on the disk what is written over."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def outcomes(
    damaged: Iterable[Loaded],
    load: Callable[[Loaded], bool | None],
    *,
    may_differ: bool = False,
) -> Counter[str]:
    """Count what comes of damaged files: refused by an error of our own, or loaded unchanged.

    Args:
        damaged: The files.
        load: Loads one and says whether it still means the same.
        may_differ: Also let those through that mean something else.

    Raises:
        AssertionError: Another error, another meaning, or too long a time.
    """
    counts: Counter[str] = Counter()
    for number, file in enumerate(damaged):
        began = time.perf_counter()
        try:
            same = load(file)
        except TaskPruneError:
            counts["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} at {number}: {_shown(file)}") from error
        else:
            counts["same" if same else "other"] += 1
            assert same or may_differ, f"Another meaning at {number}: {_shown(file)}"
        assert time.perf_counter() - began < SLOWEST_S, f"Slow at {number}: {_shown(file)}"
    return counts


def _shown(file: object) -> str:
    return repr(file)[:1500]
