"""Run what a model's code would look up in a cache.

A forward may read position tables from a function under ``functools.lru_cache``, or hand shapes to
a library that keeps what it made of them. During a trace such a cache would be asked for sizes that
remember their origin, and would keep them, or tensors without content, for whoever asks next.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, update_wrapper
from types import CellType, FunctionType, ModuleType
from typing import Any

from torch import nn

_Cached = type(lru_cache(maxsize=1)(lambda: None))

_ROUTINES = (FunctionType, _Cached, classmethod, staticmethod)

_FOREIGN = frozenset({"torch", "numpy", "scipy", "taskprune", *sys.stdlib_module_names})
"""Libraries that keep nothing of what a forward hands them."""


@contextmanager
def without_caches(
    model: nn.Module, passes_by: Callable[[tuple[Any, ...]], bool]
) -> Iterator[None]:
    """Put caches that last no longer than this in place of those a forward may use.

    Reaches the caches in the files that define the model's classes, in the files from which those
    import functions, and so on: functions and methods, also where a decorator of one's own is
    wrapped around the cache. Given back on exit, also on error.

    Args:
        model: The model.
        passes_by: Whether something must not even be looked up, given a call's arguments.
    """
    made: dict[int, Any] = {}

    def passing(cached: Any) -> Any:
        if id(cached) not in made:
            made[id(cached)] = _passing(cached, passes_by)
        return made[id(cached)]

    with ExitStack() as stack:
        for owner in _namespaces(model):
            for name, value in _routines(owner):
                inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                if isinstance(inner, _Cached):
                    own = passing(inner)
                    setattr(owner, name, own if inner is value else type(value)(own))
                    stack.callback(setattr, owner, name, value)
                for cell in _cells_with_cache(inner):
                    stack.callback(_fill(cell, passing(cell.cell_contents)))
        yield


def _passing(cached: Any, passes_by: Callable[[tuple[Any, ...]], bool]) -> Callable[..., Any]:
    """Return the function of a cache under one of its own."""
    own: Any = lru_cache(maxsize=None)(cached.__wrapped__)

    def call(*args: Any, **kwargs: Any) -> Any:
        if passes_by((*args, *kwargs.values())):
            return cached.__wrapped__(*args, **kwargs)
        return own(*args, **kwargs)

    vars(call).update(cache_info=own.cache_info, cache_clear=own.cache_clear)
    return update_wrapper(call, cached.__wrapped__)


def _namespaces(model: nn.Module) -> list[type | ModuleType]:
    """Return the classes of a model, the files from which theirs may call something, and theirs."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    own = [kind for kind in kinds if not _is_foreign(kind.__module__)]
    found: dict[str, list[type | ModuleType]] = {}
    names = {kind.__module__ for kind in own}
    while names:
        name = names.pop()
        file = sys.modules.get(name)
        found[name] = [] if file is None else [file, *_classes(file)]
        if file is not None:
            names |= {n for n in _imported(file) if n not in found and not _is_foreign(n)}
    # Classes that a function defines are in no file.
    return list(dict.fromkeys([*own, *(owner for owners in found.values() for owner in owners)]))


def _classes(file: ModuleType) -> Iterator[type]:
    """Yield the classes that a file defines."""
    for value in [*vars(file).values()]:
        if isinstance(value, type) and value.__module__ == file.__name__:
            yield value


def _is_foreign(name: str) -> bool:
    return name.split(".", 1)[0] in _FOREIGN


def _imported(file: ModuleType) -> set[str]:
    """Return the names of the files that modules and functions in a file come from."""
    modules = {value.__name__ for value in [*vars(file).values()] if type(value) is ModuleType}
    return modules | {value.__module__ or "" for _, value in _routines(file)}


def _routines(owner: type | ModuleType) -> list[tuple[str, Any]]:
    """Return the functions and caches of a class or file, by name."""
    return [entry for entry in [*vars(owner).items()] if type(entry[1]) in _ROUTINES]


def _cells_with_cache(function: Any) -> Iterator[CellType]:
    """Yield the variables of a decorated function that hold a cache."""
    if isinstance(function, FunctionType):
        yield from filter(_holds_cache, function.__closure__ or ())


def _holds_cache(cell: CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, _Cached)
    except ValueError:  # of a name that is not bound yet
        return False


def _fill(cell: CellType, content: Any) -> Callable[[], None]:
    """Give a variable another value; return what gives it back."""
    before = cell.cell_contents

    def give_back() -> None:
        cell.cell_contents = before

    cell.cell_contents = content
    return give_back
