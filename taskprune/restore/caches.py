"""What a model's code keeps outside of module instances, given back as it was.

A forward may keep position tables in a dict of its file, on a class, in a closure, in an object or
under ``functools.lru_cache``. During a trace it would keep tensors without content there, and sizes
that remember their origin; during a verification, tensors of another dtype. The model would find
them afterwards.

Where code keeps things is found by names, starting from the forwards of the model's modules: what
the names in a function stand for in its file, and every method so named of the classes met on the
way. From an installed package the names do not lead to others, unless the model is of it. What is
met is remembered before, and looked through for tensors afterwards; all else that code has noted
down, such as a counter, stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, lru_cache, partial, update_wrapper
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from taskprune.restore.kept_tensors import (
    DEEPEST,
    LONGEST,
    OURS,
    ClassNamespace,
    ClosureNamespace,
    Restore,
    entries,
    holds_tensor,
    is_installed,
    is_library,
    items_of,
    of_collection,
    of_mapping,
    of_namespace,
    package_of,
)
from taskprune.restore.process import alone, collection_paused

_Cached = type(lru_cache(maxsize=1)(lambda: None))
_CONTAINERS = (dict, list, deque, set, _Cached)
"""What is looked at by whatever name: code may have put the name together."""
_OF_MODULES = frozenset({"_parameters", "_buffers", "_modules"})
_REGISTRIES = frozenset(vars(nn.Module()))
"""What every module has; its registries of hooks are mostly empty."""
_PLAIN = (bool, int, float, complex, str, bytes, range, Tensor, nn.Module, type(None))
_NOTHING_IN = frozenset(
    {*_PLAIN, nn.Parameter, torch.dtype, BuiltinFunctionType, CodeType, TypeVar}
)
"""What is not even looked at; subclasses are, in case they keep something."""


@contextmanager
def caches_given_back(model: nn.Module, forward: Any = None) -> Iterator[None]:
    """Leave no tensor in what code of the model keeps, on exit, also on error.

    Caches of functions are emptied if they were used.

    Args:
        model: The model that will run.
        forward: Other code that runs, such as the function that calls the model.
    """
    with alone():
        caches = Caches(model, forward)
        try:
            yield
        finally:
            caches.give_back()


class Caches:
    """All that code of a model can keep something in, and what that holds when it is looked for.

    Args:
        model: The model that will run.
        forward: Other code that runs, such as the function that calls the model.
    """

    @collection_paused()
    def __init__(self, model: nn.Module, forward: Any = None) -> None:
        self._cached: list[tuple[MutableMapping[str, Any], str, Any]] = []
        self._restores: list[Restore] = []
        self._seen: dict[int, Any] = {}  # holds them, so that no id is used twice
        self._names: set[str] = {"forward"}
        self._waiting: dict[str, list[tuple[Any, str]]] = {}
        self._todo: deque[tuple[Any, int, str]] = deque([(forward, 0, OURS)])
        self._open = {OURS, *(package_of(type(module).__module__) for module in model.modules())}
        for module in model.modules():
            self._todo.append((type(module), 0, OURS))
            own = {n: value for n, value in vars(module).items() if n not in _OF_MODULES}
            self._follow((v for n, v in own.items() if n not in _REGISTRIES or v), 1, OURS)
        while self._todo:
            self._visit(*self._todo.popleft())

    def give_back(self) -> None:
        """Take tensors out again."""
        for restore in self._restores:
            restore()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Give all back on exit, and put caches that last no longer in place of functions' own.

        Those are not even asked for tensors, or for sizes of a trace. May be entered repeatedly.
        """
        with alone(), ExitStack() as stack:
            stack.callback(self.give_back)
            made: dict[int, Any] = {}
            for namespace, name, value in self._cached:
                stack.callback(namespace.__setitem__, name, value)
                cached = _cached(value)
                if id(cached) not in made:
                    made[id(cached)] = _stand_in(cached)
                own = made[id(cached)]
                namespace[name] = own if cached is value else type(value)(own)
            yield

    def _visit(self, value: Any, depth: int, package: str) -> None:
        # Not `isinstance`: objects may answer anything when they are asked for their class.
        kind = type(value)
        if id(value) in self._seen or depth > DEEPEST or issubclass(kind, _PLAIN):
            return
        theirs = _package(value, package)
        if theirs != package and not self._leads_on(package):
            return
        self._seen[id(value)] = value
        if kind is FunctionType:
            self._function(value, theirs)
        elif kind is _Cached:
            self._restores.append(_emptying(value))
            self._todo.append((value.__wrapped__, 0, theirs))
        elif issubclass(kind, type):
            for base in value.__mro__:
                if not is_library(base.__module__):
                    self._namespace(ClassNamespace(base), vars(base), package_of(base.__module__))
        elif issubclass(kind, ModuleType):
            if not is_library(value.__name__):
                self._namespace(vars(value), vars(value), theirs)
        elif (inner := _wrapped(value)) is not None:
            self._follow(inner, depth, package)
        else:
            self._object(value, depth, package)

    def _leads_on(self, package: str) -> bool:
        """Whether code of a package is followed to others: the user's own, and the model's."""
        if package not in self._open and not is_installed(package):
            self._open.add(package)
        return package in self._open

    def _follow(self, values: Iterable[Any], depth: int, package: str) -> None:
        self._todo.extend(
            (value, depth, package) for value in values if type(value) not in _NOTHING_IN
        )

    def _function(self, function: FunctionType, package: str) -> None:
        if package == OURS:  # the library's functions call those of users
            self._closure(function, package)
        if is_library(package):
            return
        new = _names(function.__code__) - self._names
        self._names |= new
        for name in new:
            self._todo.extend((value, 0, where) for value, where in self._waiting.pop(name, ()))
        self._namespace(function.__globals__, function.__globals__, package)
        self._closure(function, package)
        self._keep(vars(function))
        self._follow(vars(function).values(), 0, package)
        self._follow(function.__defaults__ or (), 1, package)
        self._follow((function.__kwdefaults__ or {}).values(), 1, package)

    def _closure(self, function: FunctionType, package: str) -> None:
        if function.__closure__:
            closure = ClosureNamespace(function.__code__.co_freevars, function.__closure__)
            self._keep(closure)
            self._follow(closure.values(), 0, package)

    def _namespace(self, namespace: MutableMapping[str, Any], key: Any, package: str) -> None:
        """Follow the names of a namespace that code uses, and wait for the others."""
        if id(key) in self._seen and key is namespace:
            return
        self._seen[id(key)] = key
        self._keep(namespace)
        for name, value in list(key.items()):
            kind = type(value)
            if kind in _NOTHING_IN:
                continue
            if name.startswith("__"):
                followed = kind is FunctionType
            else:
                followed = name in self._names or issubclass(kind, _CONTAINERS)
            if followed:
                self._todo.append((value, 0, package))
            else:
                self._waiting.setdefault(name, []).append((value, package))

    def _keep(self, namespace: MutableMapping[str, Any]) -> None:
        before = dict(namespace)
        self._restores.append(of_namespace(namespace, before))
        for name, value in before.items():
            if _cached(value) is not None:
                self._cached.append((namespace, name, value))

    def _object(self, value: Any, depth: int, package: str) -> None:
        if isinstance(value, dict):
            self._restores.append(of_mapping(value))
            inner = [content for _, content in entries(value)]
        elif isinstance(value, list | deque | set):
            self._restores.append(of_collection(value))
            inner = items_of(value)
        elif isinstance(value, tuple):
            inner = [*tuple.__iter__(value)]
        elif isinstance(value, frozenset):
            inner = [*frozenset.__iter__(value)]
        elif type(value).__dictoffset__ and _may_keep(value):
            self._todo.append((type(value), 0, package))
            self._keep(vars(value))
            inner = [*vars(value).values()]
        else:
            return
        if len(inner) <= LONGEST:
            self._follow(inner, depth + 1, package)


def _package(value: Any, default: str) -> str:
    """Return the package that a function, a class or a module is of; other values have none."""
    kind = type(value)
    if kind is FunctionType or issubclass(kind, type):
        return package_of(value.__module__ or "")
    return package_of(value.__name__) if issubclass(kind, ModuleType) else default


def _cached(value: Any) -> Any:
    """Return the cache of a function that a value is, or binds to a class; ``None`` for others."""
    kind = type(value)
    if kind is classmethod or kind is staticmethod:
        value = value.__func__
        kind = type(value)
    return value if kind is _Cached else None


def _stand_in(cached: Any) -> Callable[..., Any]:
    own: Any = lru_cache(maxsize=None)(cached.__wrapped__)

    def call(*args: Any, **kwargs: Any) -> Any:
        function = cached.__wrapped__ if holds_tensor((args, kwargs)) else own
        return function(*args, **kwargs)

    vars(call).update(cache_info=own.cache_info, cache_clear=own.cache_clear)
    return update_wrapper(call, cached.__wrapped__)


def _wrapped(value: Any) -> tuple[Any, ...] | None:
    """Return what a value that stands for a function is made of; ``None`` for others."""
    if isinstance(value, classmethod | staticmethod):
        return (value.__func__,)
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if isinstance(value, property):
        return value.fget, value.fset
    if isinstance(value, cached_property):
        return (value.func,)
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    return None


def _may_keep(value: Any) -> bool:
    """Whether an object may be a cache; of a library's, only those that are mappings."""
    return issubclass(type(value), MutableMapping) or not is_library(type(value).__module__)


@lru_cache(maxsize=4096)
def _names(code: CodeType) -> frozenset[str]:
    """Return the global names and attributes that code mentions, functions inside of it as well."""
    inside = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return frozenset(code.co_names).union(*inside)


def _emptying(cached: Any) -> Callable[[], None]:
    """Return what empties the cache of a function, if it was filled meanwhile."""
    before = cached.cache_info().misses

    def restore() -> None:
        if cached.cache_info().misses != before:
            cached.cache_clear()

    return restore
