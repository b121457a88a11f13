"""Run what a model's code would look up in a cache.

A forward may read position tables from a function under ``functools.lru_cache``. During a trace
such a cache would be asked for sizes that remember their origin, and would keep tensors without
content, which the model would find there afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from types import CellType, FunctionType, ModuleType
from typing import Any

from torch import nn

_Cached = type(lru_cache(maxsize=1)(lambda: None))


@contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """Put the functions themselves in place of their caches, given back on exit, also on error.

    Reaches the caches among the methods of the model's classes and among the names of the files
    that define these classes, also where a decorator of one's own is wrapped around the cache.
    """
    with ExitStack() as stack:
        for owner in _namespaces(model):
            for name, value in list(vars(owner).items()):
                if isinstance(value, _Cached):
                    setattr(owner, name, value.__wrapped__)
                    stack.callback(setattr, owner, name, value)
                else:
                    for cell in _cells_with_cache(value):
                        stack.callback(_fill(cell, cell.cell_contents.__wrapped__))
        yield


def _namespaces(model: nn.Module) -> list[type | ModuleType]:
    """Return the classes of a model and the files that define them, without those of torch."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    own = [kind for kind in kinds if kind.__module__.split(".", 1)[0] not in ("torch", "builtins")]
    files = (sys.modules.get(name) for name in {kind.__module__ for kind in own})
    return [*own, *(file for file in files if file is not None)]


def _cells_with_cache(value: Any) -> Iterator[CellType]:
    """Yield the variables of a decorated function that hold a cache."""
    if isinstance(value, classmethod | staticmethod):
        value = value.__func__
    if isinstance(value, FunctionType):
        yield from filter(_holds_cache, value.__closure__ or ())


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
