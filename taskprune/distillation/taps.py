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


class FeatureRecorder:
    """Holds what the tapped modules put out; made by :func:`tapped`."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        self.taps = tuple(taps)
        self._calls: dict[str, list[Any]] = {}
        self._active = False

    def run(self, call: Callable[[], _Result]) -> tuple[_Result, dict[str, Tensor]]:
        """Run ``call`` and return its result with ``{tap label: feature}``.

        Only what runs inside is recorded, so the model may be used freely in between.

        Raises:
            InputError: A tapped module did not run, ran more than once without ``Tap.call``, or
                put out something else than a tensor without ``Tap.output``.
        """
        self._calls = {tap.module: [] for tap in self.taps}
        self._active = True
        try:
            result = call()
            return result, {tap.label: _feature(tap, self._calls[tap.module]) for tap in self.taps}
        finally:
            self._active = False
            self._calls = {}

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """Return the forward hook that records the module called ``name``."""

        def record(_module: nn.Module, _args: Any, output: Any) -> None:
            if self._active:
                self._calls[name].append(output)

        return record


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


def _feature(tap: Tap, calls: Sequence[Any]) -> Tensor:
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
        output = calls[tap.call or 0]
    except IndexError:
        raise InputError(
            f"Tap `{tap.label}` asks for call {tap.call}; the module ran {len(calls)} times."
        ) from None
    return _selected(tap, output)


def _selected(tap: Tap, output: Any) -> Tensor:
    found = type(output).__name__
    if isinstance(output, Mapping):
        choices: list[Any] = list(output)
    elif isinstance(output, tuple | list):
        choices = list(range(len(output)))
    else:
        choices = []
    if tap.output is not None and choices:
        if tap.output in choices:
            output = output[tap.output]
        elif isinstance(tap.output, str) and hasattr(output, tap.output):
            output = getattr(output, tap.output)
    elif tap.output is not None and isinstance(tap.output, str):
        output = getattr(output, tap.output, None)
    if not isinstance(output, Tensor):
        raise InputError(
            f"Tap `{tap.label}` must give a tensor. The module `{tap.module}` puts out a {found}"
            + (
                f" with {choices}; choose with `Tap({tap.module!r}, output=...)`."
                if choices
                else "."
            )
        )
    return output
