"""The integers that modules and their configurations store, handed out with their origin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from enum import Enum
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from taskprune.graph.sizes import AttributeOf, SizeObserver, TracedInt

_OWN_STATE = frozenset(vars(nn.Module()))
"""Attributes that every module has: registries of parameters, hooks and the like."""


def trace_attributes(
    model: nn.Module, observer: SizeObserver
) -> dict[tuple[str, tuple[str | int, ...]], int]:
    """Replace the integers that modules store by traced ones; return them by place.

    Reaches into tuples, lists, dicts and configurations. To be called under :func:`borrowed`, which
    undoes it.
    """
    found: dict[tuple[str, tuple[str | int, ...]], int] = {}
    copied: dict[int, Any] = {}  # a container that several modules share stays shared
    for module_path, module in model.named_modules():

        def traced(value: Any, path: tuple[str | int, ...], where: str = module_path) -> Any:
            if type(value) is int:
                found[where, path] = value
                return TracedInt(value, AttributeOf(where, path), observer)
            return value

        for name, value in list(vars(module).items()):
            if name not in _OWN_STATE:
                vars(module)[name] = _mapped(value, (name,), traced, copied)
    return found


def _mapped(
    value: Any,
    path: tuple[str | int, ...],
    function: Callable[[Any, tuple[str | int, ...]], Any],
    copied: dict[int, Any],
) -> Any:
    """Rebuild plain containers with ``function`` applied to what they hold."""
    if id(value) in copied:
        return copied[id(value)]
    if type(value) is tuple:
        items = [_mapped(v, (*path, i), function, copied) for i, v in enumerate(value)]
        return tuple(items)
    if type(value) is list:
        result: list[Any] = []
        copied[id(value)] = result
        result.extend(_mapped(v, (*path, i), function, copied) for i, v in enumerate(value))
        return result
    if type(value) is dict:
        mapping: dict[Any, Any] = {}
        copied[id(value)] = mapping
        for key, v in value.items():
            inner = (*path, key) if isinstance(key, str | int) else None
            mapping[key] = _mapped(v, inner, function, copied) if inner else v
        return mapping
    if is_configuration(value):
        configuration = object.__new__(type(value))
        copied[id(value)] = configuration
        for name, v in vars(value).items():
            vars(configuration)[name] = _mapped(v, (*path, name), function, copied)
        return configuration
    return function(value, path)


_NO_CONFIGURATIONS = frozenset({"torch", "builtins", "functools", "types", "enum", "collections"})


def is_configuration(value: Any) -> bool:
    """Whether a value is an object of somebody's own class that only holds settings."""
    kind = type(value)
    if kind.__module__.split(".", 1)[0] in _NO_CONFIGURATIONS or not hasattr(value, "__dict__"):
        return False
    if isinstance(value, type | ModuleType | int | float | str | bytes | Enum) or callable(value):
        return False
    # A class with slots, or one that extends a container, has more to it than these.
    if kind.__itemsize__ or any("__slots__" in vars(k) for k in kind.__mro__[:-1]):
        return False
    if isinstance(value, Mapping | Sequence | Set | Iterator):
        return False
    return not any(isinstance(v, Tensor | nn.Module) or callable(v) for v in vars(value).values())
