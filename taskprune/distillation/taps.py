"""Taps: read what named modules put out while a model runs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from taskprune.distillation.roles import Role, declared_roles, modules_of_role
from taskprune.errors import InputError

_Result = TypeVar("_Result")

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
    inner = unwrapped(model)
    side: Side | None = None if student is None else "teacher"
    taps: dict[tuple[str, str | int | None, int | None], Tap] = {}
    explicit: set[tuple[str, str | int | None, int | None]] = set()
    for selector in selectors:
        if isinstance(selector, Role):
            found = _of_role(inner, selector, student)
        else:
            found = _matches(_modules(inner), selector, side)
        for tap in found:
            place = (tap.module, tap.output, tap.call)
            is_explicit = isinstance(selector, Tap)
            if is_explicit and place in explicit and taps[place] != tap:
                raise InputError(
                    f"Found two taps of one feature: {taps[place]} and {tap}. Leave one out."
                )
            if place not in taps or (is_explicit and place not in explicit):
                taps[place] = tap
            if is_explicit:
                explicit.add(place)
    if student is not None:
        _check_paths(unwrapped(student), taps.values(), "student")
    return tuple(taps.values())


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules(remove_duplicate=False) if name}


def _of_role(model: nn.Module, role: Role, student: nn.Module | None) -> list[Tap]:
    side: Side | None = None if student is None else "teacher"
    paths = _paths_of_role(model, role, side)
    if student is None or role.name not in declared_roles(unwrapped(student)):
        return [Tap(path) for path in paths]
    others = _paths_of_role(unwrapped(student), role, "student")
    if len(others) != len(paths):
        raise InputError(
            f"The modules of the role `{role.name}` are compared one by one, in order. Found "
            f"{paths} in the teacher and {others} in the student. Declare as many in both, or pair "
            "modules by `Tap('path.in.teacher', student='path.in.student')`."
        )
    pairs = zip(paths, others, strict=True)
    return [Tap(path, student=None if other == path else other) for path, other in pairs]


def _paths_of_role(model: nn.Module, role: Role, side: Side | None) -> list[str]:
    modules = _modules(model)
    found = [t.module for p in modules_of_role(model, role) for t in _matches(modules, p, side)]
    return list(dict.fromkeys(found))


def _matches(modules: Mapping[str, nn.Module], selector: object, side: Side | None) -> list[Tap]:
    if isinstance(selector, Tap):
        found = [selector] if selector.module in modules else []
        wanted = selector.module
    elif isinstance(selector, str):
        names = (
            [selector] if selector in modules else [n for n in modules if fnmatchcase(n, selector)]
        )
        found, wanted = [Tap(name) for name in names], selector
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
        f"Found {found!r}."
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


def _check_paths(model: nn.Module, taps: Iterable[Tap], side: Side | None) -> None:
    modules = _modules(model)
    for tap in taps:
        if tap.path_in(side) not in modules:
            raise _nothing_fits(modules, tap.path_in(side), side)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module with the user's own paths, without ``torch.compile``'s and DDP's wrappers.

    Hooks on its submodules run in whatever way the wrapper calls it.
    """
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


@dataclass(frozen=True)
class _Call:
    """One call of a tapped module.

    Attributes:
        output: What the module put out.
        feature: What the tap chooses of it.
        version: How often the feature had been changed in place by then; ``None`` if untracked.
        copy: The feature as it was, where it may be changed later in the forward pass.
        training: The module's mode.
    """

    output: Any
    feature: Any
    version: int | None = None
    copy: Tensor | None = None
    training: bool = False


class FeatureRecorder:
    """Holds what the tapped modules put out; made by :func:`tapped`.

    Features are those that the modules gave, also where the model changes them in place later
    (``nn.ReLU(inplace=True)`` after a norm, ``out += identity``). The first run in each mode copies
    all features to find such ones; after it only they are copied, and those of compiled parts.
    """

    def __init__(self, taps: Sequence[Tap], side: Side | None = None) -> None:
        self.taps = tuple(taps)
        self._side = side
        self._calls: dict[str, list[_Call]] = {}
        self._active = False
        # By label and mode: dropout, for one, changes tensors in place in training only.
        self._is_changed: dict[tuple[str, bool], bool] = {}

    def run(self, call: Callable[[], _Result]) -> tuple[_Result, dict[str, Tensor]]:
        """Run ``call`` and return its result with ``{tap label: feature}``.

        Only what runs inside is recorded, so the model may be used freely in between.

        Raises:
            InputError: A tapped module did not run, ran more than once without ``Tap.call``, put
                out something else than a tensor without ``Tap.output``, or put out a tensor that
                was changed in place in this run, but not in the first.
        """
        self._calls = {tap.label: [] for tap in self.taps}
        self._active = True
        try:
            result = call()
            return result, {tap.label: self._feature(tap) for tap in self.taps}
        finally:
            self._active = False
            self._calls = {}

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """Return the forward hook that records the module called ``name``."""
        taps = [tap for tap in self.taps if tap.path_in(self._side) == name]

        def record(module: nn.Module, _args: Any, output: Any) -> None:
            if self._active:
                for tap in taps:
                    self._calls[tap.label].append(self._seen(tap, output, module.training))

        return record

    def _seen(self, tap: Tap, output: Any, training: bool) -> _Call:
        feature = _chosen(tap, output)
        if not isinstance(feature, Tensor):
            return _Call(output, feature)
        # Compiled code and inference mode do not count changes, so there it is always copied.
        is_tracked = not torch.compiler.is_compiling() and not feature.is_inference()
        if not is_tracked:
            return _Call(output, feature, None, feature.clone(), training)
        needs_copy = self._is_changed.get((tap.label, training), True)
        copy = feature.clone() if needs_copy else None
        return _Call(output, feature, feature._version, copy, training)

    def _feature(self, tap: Tap) -> Tensor:
        """Return what the tapped module gave, before anything changed it."""
        where = f"`{tap.path_in(self._side)}`" + (f" of the {self._side}" if self._side else "")
        call = _call(tap, self._calls[tap.label], where)
        feature = _checked(tap, call, where)
        if call.version is None:
            assert call.copy is not None
            return call.copy
        is_changed = feature._version != call.version
        if call.copy is None:
            if is_changed:
                raise InputError(
                    f"Tap `{tap.label}`: the model changed in place what {where} gave, as it did "
                    "not in its first run, so the feature is lost. Compute out of place "
                    "after that module (`inplace=False`, `x = x + y`), or tap another one."
                )
            return feature
        # Once copied for a change, always copied: a graph that differs between steps would round
        # otherwise in a run that is resumed. The copies of unchanged ones are dropped for that too.
        key = (tap.label, call.training)
        self._is_changed[key] = self._is_changed.get(key, False) or is_changed
        return call.copy if self._is_changed[key] else feature


@contextmanager
def tapped(
    model: nn.Module, taps: Sequence[Tap], *, side: Side | None = None
) -> Iterator[FeatureRecorder]:
    """Hook the tapped modules for the length of the block; the hooks go away in any case.

    Example:
        >>> with tapped(model, resolve_taps(model, ["backbone.*"])) as recorder:
        ...     outputs, features = recorder.run(lambda: model(images))

    Args:
        model: The model.
        taps: What to record.
        side: Which model it is, for taps with a path of their own in the student and for errors.

    Raises:
        InputError: The model has no module of that path.
    """
    inner = unwrapped(model)
    _check_paths(inner, taps, side)
    recorder = FeatureRecorder(taps, side)
    handles = []
    try:
        for name in dict.fromkeys(tap.path_in(side) for tap in taps):
            hook = recorder.hook(name)
            handles.append(inner.get_submodule(name).register_forward_hook(hook))
        _forget_compiled(model)
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
        _forget_compiled(model)


def _forget_compiled(model: nn.Module) -> None:
    """Have a compiled model compiled anew at its next call.

    What ``torch.compile`` made before neither sees new hooks nor lets go of those it saw.
    """
    modules = list(model.modules())
    if any(m._compiled_call_impl is not None or hasattr(m, "_orig_mod") for m in modules):
        torch.compiler.reset()


def _call(tap: Tap, calls: Sequence[_Call], where: str) -> _Call:
    if not calls:
        raise InputError(
            f"The tapped module {where} did not run in the forward pass. Tap one that does."
        )
    if tap.call is None and len(calls) > 1:
        raise InputError(
            f"The tapped module {where} ran {len(calls)} times in one forward pass. Say "
            f"which call is meant: `Tap({tap.module!r}, call=-1)` takes the last."
        )
    try:
        return calls[tap.call or 0]
    except IndexError:
        raise InputError(
            f"Tap `{tap.label}` asks for call {tap.call}; the module ran {len(calls)} times."
        ) from None


def _choices(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        return list(output)
    return list(range(len(output))) if isinstance(output, tuple | list) else []


def _chosen(tap: Tap, output: Any) -> Any:
    """Return the element of a module's output that the tap asks for, or all of it."""
    choices = _choices(output)
    if tap.output is not None and choices:
        if tap.output in choices:
            return output[tap.output]
        if isinstance(tap.output, str) and hasattr(output, tap.output):
            return getattr(output, tap.output)
    elif isinstance(tap.output, str):
        return getattr(output, tap.output, None)
    return output


def _checked(tap: Tap, call: _Call, where: str) -> Tensor:
    if isinstance(call.feature, Tensor):
        return call.feature
    choices = _choices(call.output)
    raise InputError(
        f"Tap `{tap.label}` must give a tensor. The module {where} puts out a "
        f"{type(call.output).__name__}"
        + (f" with {choices}; choose with `Tap({tap.module!r}, output=...)`." if choices else ".")
    )
