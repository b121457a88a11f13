"""Take tensors out again that code has put somewhere, and leave all else that it noted down."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from types import CellType
from typing import Any, TypeAlias

from torch import Tensor, nn

Restore: TypeAlias = Callable[[], None]

DEEPEST = 4
"""How many containers and objects within each other are looked through."""
LONGEST = 4096
"""Containers with more entries are not looked through."""
_ABSENT: Any = object()
OURS = __name__.partition(".")[0]
"""The package that this is."""
_LIBRARIES = frozenset({"torch", "numpy", "builtins", OURS, *sys.stdlib_module_names})


class ClassNamespace(MutableMapping[str, Any]):
    """The attributes of a class itself, to be set and deleted as such."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __getitem__(self, name: str) -> Any:
        return vars(self.kind)[name]

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self.kind, name, value)

    def __delitem__(self, name: str) -> None:
        delattr(self.kind, name)

    def __iter__(self) -> Iterator[str]:
        return iter(list(vars(self.kind)))

    def __len__(self) -> int:
        return len(vars(self.kind))


class ClosureNamespace(MutableMapping[str, Any]):
    """The variables that a function has from around it, where they are bound."""

    def __init__(self, names: Iterable[str], cells: Iterable[CellType]) -> None:
        self.cells = dict(zip(names, cells, strict=True))

    def __getitem__(self, name: str) -> Any:
        try:
            return self.cells[name].cell_contents
        except ValueError:  # of a name that is not bound yet
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: Any) -> None:
        self.cells[name].cell_contents = value

    def __delitem__(self, name: str) -> None:
        del self.cells[name].cell_contents

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.cells if name in self)

    def __contains__(self, name: object) -> bool:
        return name in self.cells and self.get(str(name), _ABSENT) is not _ABSENT

    def __len__(self) -> int:
        return sum(1 for _ in self)


def of_namespace(namespace: MutableMapping[str, Any], before: dict[str, Any]) -> Restore:
    """Return what binds each name anew that now stands for a tensor, and did not before."""

    def restore() -> None:
        for name, value in dict(namespace).items():
            old = before.get(name, _ABSENT)
            if value is not old and holds_tensor(value):
                if old is _ABSENT:
                    del namespace[name]
                else:
                    namespace[name] = old

    return restore


def entries(mapping: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """Return what a dictionary holds, whatever its class does when it is asked."""
    # Such as to import all that it could name.
    kind: type[dict[Any, Any]] = OrderedDict if isinstance(mapping, OrderedDict) else dict
    return [(key, kind.__getitem__(mapping, key)) for key in kind.__iter__(mapping)]


def items_of(collection: list[Any] | deque[Any] | set[Any]) -> list[Any]:
    """Return what a collection holds, whatever its class does when it is asked."""
    kind: Any = next(base for base in (list, deque, set) if isinstance(collection, base))
    return [*kind.__iter__(collection)]


def of_mapping(mapping: dict[Any, Any]) -> Restore:
    """Return what takes new entries with tensors out, and puts those in that gave way to them."""
    before = entries(mapping)

    def restore() -> None:
        known = {id(key): value for key, value in before}
        now = entries(mapping)
        new = [(k, v) for k, v in now if known.get(id(k), _ABSENT) is not v]
        if not any(holds_tensor((key, value)) for key, value in new):
            return
        # Never by looking keys up: sizes among them report being hashed.
        left = {id(key) for key, _ in now}
        back = [(k, v) for k, v in before if id(k) in left or holds_tensor((k, v))]
        own = [(k, v) for k, v in new if not holds_tensor((k, v))]
        mapping.clear()
        mapping.update([*back, *own])

    return restore


def of_collection(collection: list[Any] | deque[Any] | set[Any]) -> Restore:
    """Return what takes new items with tensors out, and puts those in that gave way to them."""
    before = items_of(collection)

    def restore() -> None:
        known = {id(item) for item in before}
        new = [item for item in items_of(collection) if id(item) not in known]
        if not any(holds_tensor(item) for item in new):
            return
        own = [item for item in new if not holds_tensor(item)]
        collection.clear()
        if isinstance(collection, set):
            collection.update([*before, *own])
        else:
            collection.extend([*before, *own])

    return restore


def package_of(module: str) -> str:
    """Return the outermost package of a module."""
    return module.partition(".")[0]


def is_library(module: str) -> bool:
    """Whether what a module holds is nothing that code of a model would keep tensors in."""
    return package_of(module) in _LIBRARIES


def is_installed(package: str) -> bool:
    """Whether a package was installed, and is not the user's own code."""
    path = getattr(sys.modules.get(package), "__file__", None) or ""
    return "site-packages" in path or "dist-packages" in path


def holds_tensor(value: Any, depth: int = 0) -> bool:
    """Whether a tensor, or a size of a trace, is somewhere in a value."""
    kind = type(value)  # objects may answer anything when they are asked for their class
    if issubclass(kind, Tensor):
        return True
    if issubclass(kind, int):
        return kind.__module__ == "taskprune.graph.sizes"
    if depth > DEEPEST:
        return False
    if issubclass(kind, dict):
        inner: Iterable[Any] = (part for entry in entries(value) for part in entry)
    elif issubclass(kind, list | set | deque):
        inner = items_of(value)
    elif issubclass(kind, tuple):
        inner = tuple.__iter__(value)
    elif issubclass(kind, frozenset):
        inner = frozenset.__iter__(value)
    elif (
        is_library(kind.__module__) or issubclass(kind, type | nn.Module) or not kind.__dictoffset__
    ):
        return False
    else:
        inner = vars(value).values()
    items = list(inner)
    return len(items) <= LONGEST and any(holds_tensor(item, depth + 1) for item in items)
