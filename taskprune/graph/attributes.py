"""The integers that modules and their configurations store, handed out with their origin."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence, Set
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any, TypeAlias

from torch import Tensor, nn

from taskprune.graph.sizes import AttributeOf, SizeObserver, TracedInt

Place: TypeAlias = tuple[str, tuple[str | int, ...]]
"""A module's path, and the attribute name, then keys or positions inside containers."""

_OWN_STATE = frozenset(vars(nn.Module()))
"""Attributes that every module has: registries of parameters, hooks and the like."""


class TracedAttributes:
    """Replaces the integers that modules store by traced ones, and knows where it found them.

    Reaches into tuples, lists, dicts and configurations. To be made under :func:`borrowed`, which
    undoes it.

    Attributes:
        values: The integers by module path and path inside of the module.
        shared: Further modules that hold a container, by where it was found first.
    """

    def __init__(self, model: nn.Module, observer: SizeObserver) -> None:
        self.values: dict[Place, int] = {}
        self.shared: dict[Place, tuple[str, ...]] = {}
        self._observer = observer
        self._copied: dict[int, tuple[Any, Place]] = {}  # a shared container stays shared
        for module_path, module in model.named_modules():
            kept = _kept_by_copies(module)
            for name, value in list(vars(module).items()):
                if name not in _OWN_STATE and name in kept:
                    vars(module)[name] = self._traced(value, module_path, (name,))

    def _traced(self, value: Any, module: str, path: tuple[str | int, ...]) -> Any:
        """Return an integer with its origin, and plain containers rebuilt with such inside."""
        if type(value) is int:
            self.values[module, path] = value
            return TracedInt(value, AttributeOf(module, path), self._observer)
        if type(value) is tuple:
            return tuple(self._traced(v, module, (*path, i)) for i, v in enumerate(value))
        if id(value) in self._copied:
            copy, first = self._copied[id(value)]
            self.shared[first] = (*self.shared.get(first, ()), module)
            return copy
        if type(value) is list:
            items: list[Any] = []
            self._copied[id(value)] = items, (module, path)
            items.extend(self._traced(v, module, (*path, i)) for i, v in enumerate(value))
            return items
        if type(value) is dict:
            mapping: dict[Any, Any] = {}
            self._copied[id(value)] = mapping, (module, path)
            for key, v in value.items():
                is_path = isinstance(key, str | int)
                mapping[key] = self._traced(v, module, (*path, key)) if is_path else v
            return mapping
        configuration = _empty(value) if is_configuration(value) else None
        if configuration is not None:
            self._copied[id(value)] = configuration, (module, path)
            for name, v in vars(value).items():
                vars(configuration)[name] = self._traced(v, module, (*path, name))
            return configuration
        return value


def _kept_by_copies(module: nn.Module) -> Container[str]:
    """Return the names of the attributes that a copy has from the module.

    A class that says what of it is copied works the rest out anew, from what it was made with: a
    new value stored there would be lost.
    """
    own: Any = getattr(type(module), "__getstate__", None)
    if own in (None, getattr(object, "__getstate__", None)):
        return vars(module)
    try:
        state = own(module)
    except Exception:  # noqa: BLE001 - whatever it is, copying the model will say so
        return vars(module)
    return state if isinstance(state, dict) else vars(module)


def _empty(value: Any) -> Any:
    """Return an object of the same class without attributes, or ``None`` where there is no such."""
    maker = SimpleNamespace if isinstance(value, SimpleNamespace) else object
    try:
        return maker.__new__(type(value))
    except TypeError:  # of a class that C code makes
        return None


_NO_CONFIGURATIONS = frozenset({"torch", "builtins", "functools", "types", "enum", "collections"})


def is_configuration(value: Any) -> bool:
    """Whether a value is an object of somebody's own class that only holds settings."""
    kind = type(value)
    if kind.__module__.split(".", 1)[0] in _NO_CONFIGURATIONS and kind is not SimpleNamespace:
        return False
    if not kind.__dictoffset__:  # asked of the class, as objects may answer anything
        return False
    if isinstance(value, type | ModuleType | int | float | str | bytes | Enum) or callable(value):
        return False
    # A class with slots, or one that extends a container, has more to it than these.
    if kind.__itemsize__ or any("__slots__" in vars(k) for k in kind.__mro__[:-1]):
        return False
    if isinstance(value, Mapping | Sequence | Set | Iterator):
        return False
    return not any(isinstance(v, Tensor | nn.Module) or callable(v) for v in vars(value).values())
