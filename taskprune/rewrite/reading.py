"""Which attribute names the forward of a model can read, found in its code without running it.

An attribute that only describes may be rewritten; one that the forward reads may not. A run shows
only the branches that were taken, so the compiled code of everything that ``forward`` can reach is
searched for names instead. The answer errs on one side: a name that is mentioned counts as read,
whoever's attribute it is there. Only names put together at run time from pieces would be missed.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

_STANDARD = ("torch", "taskprune.replace")
"""Packages whose modules describe nothing but their own tensors."""

_NEVER_RUN = frozenset(
    {
        "__init__",
        "__init_subclass__",
        "__new__",
        "__post_init__",
        "__repr__",
        "__str__",
        "__getstate__",
        "__setstate__",
        "__deepcopy__",
        "__dir__",
        "__reduce__",
        "__reduce_ex__",
        "extra_repr",
        "reset_parameters",
    }
)
"""Methods of a module that its forward does not call."""

_BY_OPERATOR = frozenset(
    {"__call__", "__getitem__", "__getattr__", "__getattribute__", "__enter__", "__exit__"}
)
"""Methods of an object that run without being named."""

_WHOLE_STATE = frozenset({"vars", "__dict__", "asdict", "astuple", "attrgetter", "to_dict"})
"""Names that read all attributes at once."""

_CALLABLES = (FunctionType, MethodType, partial, classmethod, staticmethod, property)

_TAKE_KEYWORDS = frozenset({"CALL_KW", "CALL_FUNCTION_KW"})
"""Instructions before which the names of keyword arguments are loaded."""

EVERYTHING = None
"""In place of a set of names: any attribute may be read."""


def read_names(model: nn.Module) -> frozenset[str] | None:
    """Return the names that the forward of ``model`` may read, or `EVERYTHING`.

    Standard modules of torch and those of taskprune read their own sizes only and are left out.
    """
    modules = [m for m in model.modules() if not is_standard(m) or _holds_others(m)]
    search = _Search()
    for module in modules:
        search.add_class(type(module), _runs_in_a_module)
    for module in model.modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        for value in (*hooks, *_inner_values(vars(module))):
            kind = type(value)
            if isinstance(value, _CALLABLES):
                search.open_ends += _functions(value)
            elif not issubclass(kind, type | nn.Module) and not _is_library(kind.__module__):
                search.add_class(kind, _BY_OPERATOR.__contains__)
    names = search.run()
    if names is EVERYTHING:
        return EVERYTHING
    texts = (_strings(value) for module in modules for value in vars(module).values())
    return names.union(*texts)


def _runs_in_a_module(name: str) -> bool:
    special = name.startswith("__") and name not in _NEVER_RUN
    return special or name in ("forward", "train", "eval")


def _inner_values(state: Mapping[str, Any], depth: int = 3) -> Iterator[Any]:
    """Yield what an object holds, in containers and in objects of the user's classes too."""
    for value in state.values():
        yield value
        if not depth or isinstance(value, nn.Module | Tensor | type):
            continue
        if isinstance(value, dict):
            yield from _inner_values(value, depth - 1)
        elif isinstance(value, list | tuple):
            yield from _inner_values({str(i): inner for i, inner in enumerate(value)}, depth - 1)
        elif hasattr(value, "__dict__") and not _is_library(type(value).__module__):
            yield from _inner_values(vars(value), depth - 1)


def is_standard(module: nn.Module) -> bool:
    """Whether a module is of a class that torch or taskprune defines."""
    return _within(type(module).__module__, _STANDARD)


def _holds_others(module: nn.Module) -> bool:
    return any(not is_standard(inner) for inner in module.modules())


class _Search:
    """Follows calls by the names in the code: a name stands for every method called that."""

    def __init__(self) -> None:
        self._methods: dict[str, list[FunctionType]] = {}
        self._mentioned: set[str] = set()
        self._seen: set[type | FunctionType] = set()
        self.open_ends: list[FunctionType] = []
        self.names: set[str] = set()

    def add_class(self, kind: type, runs: Callable[[str], bool]) -> None:
        """Make methods known; those that `runs` says run without being named, and those named."""
        if kind in self._seen:
            return
        self._seen.add(kind)
        for name, functions in _methods(kind).items():
            self._methods.setdefault(name, []).extend(functions)
            if runs(name) or (name in self._mentioned and name not in _NEVER_RUN):
                self.open_ends += functions
        for name, value in vars(kind).items():
            if name[:2] != "__":  # what Python itself notes of a class, such as its fields
                self.names |= _strings(value)

    def run(self) -> frozenset[str] | None:
        """Read code until nothing new is reached; return the names that it reads."""
        while self.open_ends:
            function = self.open_ends.pop()
            if function in self._seen:
                continue
            self._seen.add(function)
            mentioned, read = _names_in(function.__code__)
            if mentioned & _WHOLE_STATE:
                return EVERYTHING
            self.names |= read
            if "getattr" in mentioned:
                mentioned |= read
            for name in mentioned - self._mentioned - _NEVER_RUN:
                self.open_ends += self._methods.get(name, ())
            self._mentioned |= mentioned
            for value in _outer_values(function, mentioned):
                self._reach(value)
        return frozenset(self.names)

    def _reach(self, value: Any) -> None:
        """Go on in a global, or in something that a function closes over."""
        self.names |= _strings(value)
        kind = value if isinstance(value, type) else type(value)
        if isinstance(value, _CALLABLES):
            self.open_ends += _functions(value)
        elif not issubclass(kind, nn.Module) and not _is_library(kind.__module__):
            # Modules are searched where they are in the model; making one is no reading.
            made = {"__init__", "__new__", "__post_init__"} if kind is value else set[str]()
            self.add_class(kind, (_BY_OPERATOR | made).__contains__)


def _methods(kind: type) -> dict[str, list[FunctionType]]:
    """Gather a class's methods by name, without those that every module and object has."""
    found: dict[str, list[FunctionType]] = {}
    for base in kind.__mro__:
        if base is not nn.Module and base is not object:
            for name, value in vars(base).items():
                # A base class of a library reads attributes of the user's object all the same.
                own = [value] if isinstance(value, FunctionType) else _functions(value)
                found.setdefault(name, []).extend(own)
    return found


@lru_cache(maxsize=16384)
def _names_in(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return all names in a piece of code, with what is defined inside of it, and those it reads.

    Names of methods that are called and of keyword arguments are no attributes that are read.
    Every text counts as read, for ``getattr`` may be asked for it.
    """
    mentioned, read = {*code.co_names, *code.co_freevars}, set[str]()
    instructions = list(dis.get_instructions(code))
    for instruction, following in zip(instructions, [*instructions[1:], None], strict=True):
        name, value = instruction.opname, instruction.argval
        if name == "LOAD_ATTR":
            called = sys.version_info >= (3, 12) and (instruction.arg or 0) & 1
            if not called:
                read.add(value)
        elif name in ("LOAD_SUPER_ATTR", "MATCH_CLASS"):
            read.add(str(value))
        elif isinstance(value, CodeType):
            inner_mentioned, inner_read = _names_in(value)
            mentioned |= inner_mentioned
            read |= inner_read
        elif name in ("LOAD_CONST", "RETURN_CONST"):
            keywords = following is not None and following.opname in _TAKE_KEYWORDS
            read |= frozenset() if keywords else _strings(value)
    return frozenset(mentioned), frozenset(read)


def _outer_values(function: FunctionType, mentioned: Iterable[str]) -> Iterator[Any]:
    """Yield the globals, members of global modules, and closed-over values that it mentions."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            yield cell.cell_contents
    mentioned = list(mentioned)
    for name in mentioned:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and not _is_library(value.__name__):
            yield from (vars(value)[inner] for inner in mentioned if inner in vars(value))
        else:
            yield value


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield the Python functions behind something that can be called."""
    if isinstance(value, FunctionType):
        if not _is_library(value.__module__ or ""):
            yield value
        else:
            # A decorator of a library around a function of the user.
            cells = (getattr(cell, "cell_contents", None) for cell in value.__closure__ or ())
            yield from (f for f in cells if isinstance(f, FunctionType))
        yield from _functions(getattr(value, "__wrapped__", None))
    elif isinstance(value, MethodType | classmethod | staticmethod):
        yield from _functions(value.__func__)
    elif isinstance(value, property):
        yield from _functions(value.fget)
    elif isinstance(value, partial):
        yield from _functions(value.func)


def _strings(value: Any, depth: int = 2) -> frozenset[str]:
    """Return the texts in a value and in the containers it is made of."""
    if isinstance(value, str):
        return frozenset({value})
    if depth and isinstance(value, tuple | list | set | frozenset):
        return frozenset().union(*(_strings(inner, depth - 1) for inner in value))
    if depth and isinstance(value, dict):
        return frozenset().union(*(_strings(inner, depth - 1) for inner in value.values()))
    return frozenset()


def _is_library(module: str) -> bool:
    return module.split(".", 1)[0] in sys.stdlib_module_names or _within(
        module, (*_STANDARD, "numpy")
    )


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
