"""Record what tapped modules put out while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from taskprune.calling.wrappers import without_wrappers
from taskprune.distillation.taps import Side, Tap, check_paths
from taskprune.errors import InputError

_Result = TypeVar("_Result")


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
    check_paths(model, taps, side)
    inner = without_wrappers(model)
    recorder = FeatureRecorder(taps, side)
    with ExitStack() as stack:
        stack.callback(_forget_compiled, model)
        for name in dict.fromkeys(tap.path_in(side) for tap in taps):
            handle = inner.get_submodule(name).register_forward_hook(recorder.hook(name))
            stack.callback(handle.remove)
        _forget_compiled(model)
        yield recorder


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
