"""Taps: read what named modules put out while a model runs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from taskprune.distillation.roles import Role, modules_of_role
from taskprune.errors import InputError

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Tap:
    """One module output to compare between student and teacher.

    Attributes:
        module: The module's path in both models.
        output: Which element, for a module that returns a tuple, list or mapping.
        call: Which call, counted from 0 (or from the end if negative), for a module that runs
            several times in a forward pass. ``None``: it runs exactly once.
        channel_dim: The axis of channels. ``None``: 1 for four dims, else the last.
        adapter: Compare through a trained 1x1 adapter even where a channel map is known; the map
            then initialises it.
    """

    module: str
    output: str | int | None = None
    call: int | None = None
    channel_dim: int | None = None
    adapter: bool = False

    @property
    def label(self) -> str:
        """How the tap is called in logs and errors."""
        output = "" if self.output is None else f"[{self.output}]"
        return f"{self.module}{output}" + ("" if self.call is None else f"@{self.call}")


TapSelector: TypeAlias = str | type[nn.Module] | Role | Tap
"""A module path, a pattern such as ``"backbone.stages.*"``, a module type, a :class:`Role` that the
model declares, or a :class:`Tap`."""


def resolve_taps(model: nn.Module, selectors: Iterable[TapSelector]) -> tuple[Tap, ...]:
    """Return the taps that the selectors mean, each once.

    They come in the order of the selectors; one that matches several modules gives them in the
    order of ``model.named_modules()``.

    Raises:
        InputError: A selector matches no module of the model, or the model declares no such role.
    """
    inner = unwrapped(model)
    modules = {name: m for name, m in inner.named_modules(remove_duplicate=False) if name}
    taps: dict[str, Tap] = {}
    for selector in selectors:
        meant = modules_of_role(inner, selector) if isinstance(selector, Role) else (selector,)
        for each in meant:
            for tap in _matches(modules, each):
                taps.setdefault(tap.label, tap)
    return tuple(taps.values())


def _matches(modules: Mapping[str, nn.Module], selector: object) -> list[Tap]:
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
        raise InputError(
            "A tap is chosen by a module path, a pattern, a module type, a `Role` or a `Tap`. "
            f"Found {selector!r}."
        )
    if not found:
        close = difflib.get_close_matches(wanted, modules, n=3) or list(modules)[:5]
        raise InputError(
            f"No module of the model fits the tap `{wanted}`. Close or first ones: "
            f"{', '.join(close) or '(the model has no submodules)'}."
        )
    return found


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

    def __init__(self, taps: Sequence[Tap]) -> None:
        self.taps = tuple(taps)
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
        taps = [tap for tap in self.taps if tap.module == name]

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
        call = _call(tap, self._calls[tap.label])
        feature = _checked(tap, call)
        if call.version is None:
            assert call.copy is not None
            return call.copy
        is_changed = feature._version != call.version
        if call.copy is None:
            if is_changed:
                raise InputError(
                    f"Tap `{tap.label}`: the model changed in place what `{tap.module}` gave, as "
                    "it did not in its first run, so the feature is lost. Compute out of place "
                    "after that module (`inplace=False`, `x = x + y`), or tap another one."
                )
            return feature
        # Once copied for a change, always copied: a graph that differs between steps would round
        # otherwise in a run that is resumed. The copies of unchanged ones are dropped for that too.
        key = (tap.label, call.training)
        self._is_changed[key] = self._is_changed.get(key, False) or is_changed
        return call.copy if self._is_changed[key] else feature


@contextmanager
def tapped(model: nn.Module, taps: Sequence[Tap]) -> Iterator[FeatureRecorder]:
    """Hook the tapped modules for the length of the block; the hooks go away in any case.

    Example:
        >>> with tapped(model, resolve_taps(model, ["backbone.*"])) as recorder:
        ...     outputs, features = recorder.run(lambda: model(images))

    Raises:
        InputError: The model has no module of that path.
    """
    resolve_taps(model, taps)
    inner = unwrapped(model)
    recorder = FeatureRecorder(taps)
    handles = []
    try:
        for name in dict.fromkeys(tap.module for tap in taps):
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


def _call(tap: Tap, calls: Sequence[_Call]) -> _Call:
    if not calls:
        raise InputError(
            f"The tapped module `{tap.module}` did not run in the forward pass. Tap one that does."
        )
    if tap.call is None and len(calls) > 1:
        raise InputError(
            f"The tapped module `{tap.module}` ran {len(calls)} times in one forward pass. Say "
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


def _checked(tap: Tap, call: _Call) -> Tensor:
    if isinstance(call.feature, Tensor):
        return call.feature
    choices = _choices(call.output)
    raise InputError(
        f"Tap `{tap.label}` must give a tensor. The module `{tap.module}` puts out a "
        f"{type(call.output).__name__}"
        + (f" with {choices}; choose with `Tap({tap.module!r}, output=...)`." if choices else ".")
    )
