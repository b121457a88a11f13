"""Name the tensors among a model's outputs: ``"lane"``, ``"detection.boxes"``, ``"0.1"``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from taskprune.errors import InputError

SINGLE = "output"
"""Path of the only tensor of a model that returns just that."""


def flatten_outputs(outputs: Any) -> dict[str, Tensor]:
    """Return the tensors inside ``outputs`` by their paths, in order.

    Mappings contribute their keys, dataclasses and named tuples their field names, tuples and
    lists positions; levels are joined by dots. A bare tensor has the path ``"output"``. Anything
    that holds no tensor is left out.
    """
    if isinstance(outputs, Tensor):
        return {SINGLE: outputs}
    return dict(_walk(outputs, ""))


def _walk(node: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield path, node
        return
    for key, child in _children(node):
        yield from _walk(child, f"{path}.{key}" if path else key)


def _children(node: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(node, Mapping):
        return [(str(key), child) for key, child in node.items()]
    if is_dataclass(node) and not isinstance(node, type):
        return [(field.name, getattr(node, field.name)) for field in fields(node)]
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return list(zip(node._fields, node, strict=True))
    if isinstance(node, tuple | list):
        return [(str(position), child) for position, child in enumerate(node)]
    return []


def matching_paths(wanted: str, available: Iterable[str]) -> tuple[str, ...]:
    """Return the available paths that ``wanted`` names: itself, or everything below it."""
    return tuple(p for p in available if p == wanted or p.startswith(f"{wanted}."))


def resolve_paths(
    tasks: Mapping[str, tuple[str, ...]], available: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """Return the full output paths of each task.

    Raises:
        InputError: A task names an output that the model does not have; lists those it has.
    """
    known = list(dict.fromkeys(available))
    resolved = {}
    for task, wanted in tasks.items():
        paths: list[str] = []
        for path in wanted:
            found = matching_paths(path, known)
            if not found:
                raise InputError(
                    f"Task '{task}' owns the output '{path}', which the model does not return. "
                    f"Its outputs are: {', '.join(repr(p) for p in known) or 'none'}."
                )
            paths += found
        resolved[task] = tuple(dict.fromkeys(paths))
    return resolved
