"""Taps: which modules' outputs are compared, chosen by path, pattern, type or role."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from torch import nn

from taskprune.calling.wrappers import without_wrappers
from taskprune.errors import InputError, short

ATTRIBUTE = "taskprune_roles"


@dataclass(frozen=True)
class Role:
    """The modules that the model declares under one name, such as ``Role("backbone")``.

    A model says what its parts are in the attribute ``taskprune_roles``, on its class or on the
    object: module paths or patterns by role, those whose outputs are worth comparing, in the order
    in which they run. Nothing is read into the modules' own names.

    Example:
        >>> class Net(nn.Module):
        ...     taskprune_roles = {"backbone": ("layer3", "layer4"), "neck": ("fpn.out",)}
        >>> distill(student, teacher, taps=[Role("backbone")], tasks=tasks, data=data)

    Attributes:
        name: As the model declares it.
    """

    name: str


def declared_roles(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the module paths and patterns by role that a model declares; none if it does not.

    Args:
        model: Without wrappers around it.

    Raises:
        InputError: ``taskprune_roles`` is no mapping from names to paths.
    """
    found = getattr(model, ATTRIBUTE, {})
    if not isinstance(found, Mapping):
        raise _malformed(model, found)
    for role, paths in found.items():
        is_list = isinstance(paths, list | tuple) and len(paths) > 0
        if not (isinstance(role, str) and is_list and all(isinstance(p, str) for p in paths)):
            raise _malformed(model, {role: paths})
    return {role: tuple(paths) for role, paths in found.items()}


def modules_of_role(model: nn.Module, role: Role) -> tuple[str, ...]:
    """Return the paths and patterns of one role.

    Raises:
        InputError: The model declares no such role.
    """
    roles = declared_roles(model)
    if role.name in roles:
        return roles[role.name]
    has = f"the roles {', '.join(f'`{name}`' for name in roles)}" if roles else "no roles"
    raise InputError(
        f"{type(model).__name__} declares {has}. Found a tap on the role `{role.name}`. Choose "
        f"modules by path, pattern or type, or declare the role: `model.{ATTRIBUTE} = "
        f"{{{role.name!r}: ('path.of.module', ...)}}`."
    )


def _malformed(model: nn.Module, found: object) -> InputError:
    return InputError(
        f"`{type(model).__name__}.{ATTRIBUTE}` must map role names to a tuple of module paths or "
        f"patterns, such as `{{'backbone': ('layer3', 'layer4')}}`. Found {short(found)}."
    )


Side: TypeAlias = Literal["student", "teacher"]


@dataclass(frozen=True)
class Tap:
    """One module output to compare between student and teacher.

    Attributes:
        module: The module's path; in both models, unless ``student`` says otherwise.
        output: Which element, for a module that returns a tuple, list or mapping.
        call: Which call, counted from 0 (or from the end if negative), for a module that runs
            several times in a forward pass. ``None``: it runs exactly once.
        channel_dim: The axis of channels. ``None``: where the modules that put out such features
            have it (1 for convolutions, the last for linear layers), else 1, or for three dims
            the last.
        adapter: Compare through a trained 1x1 adapter even where a channel map is known; the map
            then initialises it.
        student: The module's path in the student, where that is another architecture.
    """

    module: str
    output: str | int | None = None
    call: int | None = None
    channel_dim: int | None = None
    adapter: bool = False
    student: str | None = None

    @property
    def label(self) -> str:
        """How the tap is called in logs and errors."""
        output = "" if self.output is None else f"[{self.output}]"
        call = "" if self.call is None else f"@{self.call}"
        other = "" if self.student in (None, self.module) else f"{self.student}->"
        return f"{other}{self.module}{output}{call}"

    def path_in(self, side: Side | None) -> str:
        """Return the path of the module in the model of that side."""
        return self.student or self.module if side == "student" else self.module


TapSelector: TypeAlias = str | type[nn.Module] | Role | Tap
"""A module path, a pattern such as ``"backbone.stages.*"``, a module type, a :class:`Role` that the
model declares, or a :class:`Tap`."""


def resolve_taps(
    model: nn.Module,
    selectors: TapSelector | Iterable[TapSelector],
    *,
    student: nn.Module | None = None,
) -> tuple[Tap, ...]:
    """Return the taps that the selectors mean, each once.

    They come in the order of the selectors; one that matches several modules gives them in the
    order of ``model.named_modules()``. What a ``Tap`` says of a module counts more than a pattern
    that fits the same module.

    Args:
        model: The teacher, or any model.
        selectors: One or several.
        student: A model to follow it. Roles that it declares are then resolved on both and their
            modules paired in order; all else is looked up at the same paths.

    Raises:
        InputError: A selector matches no module of a model, a model declares no such role, both
            declare different numbers of modules for it, or two ``Tap`` contradict each other.
    """
    if isinstance(selectors, str | type | Role | Tap):
        selectors = [selectors]
    if not isinstance(selectors, Iterable):
        raise _no_selector(selectors)
    side: Side | None = None if student is None else "teacher"
    found: list[Tap] = []
    explicit: dict[object, Tap] = {}
    for selector in selectors:
        if isinstance(selector, Role):
            found += _of_role(model, selector, student)
        else:
            found += _matches(model, selector, side)
        if (
            isinstance(selector, Tap)
            and explicit.setdefault(_place(selector), selector) != selector
        ):
            raise InputError(
                f"Found two taps of one feature: {explicit[_place(selector)]} and {selector}. "
                "Leave one out."
            )
    taps: dict[object, Tap] = {}
    for tap in found:
        taps.setdefault(_place(tap), explicit.get(_place(tap), tap))
    if student is not None:
        check_paths(student, taps.values(), "student")
    return tuple(taps.values())


def _place(tap: Tap) -> object:
    return tap.module, tap.output, tap.call


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    modules = without_wrappers(model).named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if name}


def _of_role(model: nn.Module, role: Role, student: nn.Module | None) -> list[Tap]:
    paths = _paths_of_role(model, role, None if student is None else "teacher")
    if student is None or role.name not in declared_roles(without_wrappers(student)):
        return [Tap(path) for path in paths]
    others = _paths_of_role(student, role, "student")
    if len(others) != len(paths):
        raise InputError(
            f"The modules of the role `{role.name}` are compared one by one, in order. Found "
            f"{paths} in the teacher and {others} in the student. Declare as many in both, or pair "
            "modules by `Tap('path.in.teacher', student='path.in.student')`."
        )
    pairs = zip(paths, others, strict=True)
    return [Tap(path, student=None if other == path else other) for path, other in pairs]


def _paths_of_role(model: nn.Module, role: Role, side: Side | None) -> list[str]:
    wanted = modules_of_role(without_wrappers(model), role)
    found = [tap.module for path in wanted for tap in _matches(model, path, side)]
    return list(dict.fromkeys(found))


def _matches(model: nn.Module, selector: object, side: Side | None) -> list[Tap]:
    modules = _modules(model)
    if isinstance(selector, Tap):
        found, wanted = [selector] if selector.module in modules else [], selector.module
    elif isinstance(selector, str):
        names = [name for name in modules if fnmatchcase(name, selector)]
        found = [Tap(name) for name in ([selector] if selector in modules else names)]
        wanted = selector
    elif isinstance(selector, type) and issubclass(selector, nn.Module):
        found = [Tap(name) for name, module in modules.items() if isinstance(module, selector)]
        wanted = selector.__name__
    else:
        raise _no_selector(selector)
    if not found:
        raise _nothing_fits(modules, wanted, side)
    return found


def _no_selector(found: object) -> InputError:
    return InputError(
        "A tap is chosen by a module path, a pattern, a module type, a `Role` or a `Tap`. "
        f"Found {short(found)}."
    )


def _nothing_fits(modules: Iterable[str], wanted: str, side: Side | None) -> InputError:
    names = list(modules)
    close = difflib.get_close_matches(wanted, names, n=3) or names[:5]
    way_out = (
        f" Where the student is another architecture, pair modules by `Tap({wanted!r}, "
        "student='path.in.student')` or declare roles in both models."
        if side == "student"
        else ""
    )
    return InputError(
        f"No module of the {side or 'model'} fits the tap `{wanted}`. Close or first ones: "
        f"{', '.join(close) or '(the model has no submodules)'}.{way_out}"
    )


def check_paths(model: nn.Module, taps: Iterable[Tap], side: Side | None) -> None:
    """Check that a model has the tapped modules.

    Raises:
        InputError: It lacks one.
    """
    modules = _modules(model)
    for tap in taps:
        if tap.path_in(side) not in modules:
            raise _nothing_fits(modules, tap.path_in(side), side)
