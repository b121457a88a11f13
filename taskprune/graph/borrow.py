"""Borrow a model for a trace and give it back as it was, whatever its forward did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from taskprune.autocast import without_cached_casts
from taskprune.graph.sizes import AttributeOf, SizeObserver, TracedInt
from taskprune.rng import preserved_rng

_OWN_STATE = frozenset(vars(nn.Module()))
"""Attributes that every module has: registries of parameters, hooks and the like."""


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Restore every module's attributes, registries and flags on exit, also on error.

    Covers training flags, attributes and buffers that a forward creates, replaces or deletes,
    containers it changes in place, hooks it registers, gradients and the random generators. A
    surrounding autocast keeps no casts of weights from inside.
    Entries of tensors are not covered, see :class:`TensorGuard`.
    """
    snapshots = [_snapshot(module) for module in model.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fused inference path of attention is one opaque operator; the usual path is readable.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with preserved_rng(), without_cached_casts():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for restore in snapshots:
            restore()
        for parameter, requires_grad, grad in flags:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad


@contextmanager
def entrusted(model: nn.Module) -> Iterator[None]:
    """Do :func:`borrowed` for code that is not ours, which may do with the model what it likes.

    Entries of buffers and gradients and hooks on parameters are given back as well. Weights are
    not: copies of them would double the memory of a large model.
    """
    buffers = [(b, b.detach().clone()) for b in model.buffers() if not b.is_meta]
    parameters = list(model.parameters())
    hooks = [(p, p._backward_hooks, dict(p._backward_hooks or {})) for p in parameters]
    with borrowed(model):
        for parameter in parameters:
            if parameter.grad is not None:
                # `backward` would add to the user's own.
                parameter.grad = parameter.grad.clone()
        try:
            yield
        finally:
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    # `.data` leaves the version counter alone: for autograd nothing happened.
                    buffer.data.copy_(value)
            for parameter, registry, content in hooks:
                if registry is not None:
                    registry.clear()
                    registry.update(content)
                if parameter._backward_hooks is not registry:
                    parameter._backward_hooks = registry


@contextmanager
def readable_kernels() -> Iterator[None]:
    """Keep oneDNN away, whose recurrent layers are one opaque operator, for some dtypes only."""
    enabled = torch._C._get_mkldnn_enabled()
    # `torch.backends.mkldnn.flags` sets more than this, and warns on most machines.
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def _snapshot(module: nn.Module) -> Callable[[], None]:
    state = vars(module)
    before = dict(state)
    contents = {
        name: value.copy() for name, value in before.items() if isinstance(value, dict | list | set)
    }

    def restore() -> None:
        state.clear()
        state.update(before)
        for name, content in contents.items():
            container = before[name]
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)

    return restore


@dataclass
class TensorGuard:
    """Keeps the entries of tensors that existed before the trace and are about to be written to.

    Copies on first write, so nothing is copied for the usual model in eval mode.
    """

    copies: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def about_to_write(self, tensor: Tensor) -> None:
        """Remember the entries of ``tensor`` as they are now, unless already remembered."""
        if id(tensor) in self.copies or isinstance(tensor, FakeTensor):
            return
        # Also a run without content writes to a real tensor where no other argument is a fake.
        with unset_fake_temporarily():
            self.copies[id(tensor)] = (tensor, tensor.detach().clone())

    def restore(self) -> None:
        """Write all remembered entries back."""
        with torch.no_grad():
            for tensor, before in self.copies.values():
                # `.data` leaves the version counter alone: for autograd nothing happened.
                tensor.data.copy_(before)


def trace_attributes(
    model: nn.Module, observer: SizeObserver
) -> dict[tuple[str, tuple[str | int, ...]], int]:
    """Replace the integers that modules store by traced ones; return them by place.

    Reaches into tuples, lists, dicts and configurations. To be called under :func:`borrowed`, which
    undoes it.
    """
    found: dict[tuple[str, tuple[str | int, ...]], int] = {}
    copied: dict[int, Any] = {}  # a container that several modules share stays shared
    for module_path, module in model.named_modules():

        def traced(value: Any, path: tuple[str | int, ...], where: str = module_path) -> Any:
            if type(value) is int:
                found[where, path] = value
                return TracedInt(value, AttributeOf(where, path), observer)
            return value

        for name, value in list(vars(module).items()):
            if name not in _OWN_STATE:
                vars(module)[name] = _mapped(value, (name,), traced, copied)
    return found


def _mapped(
    value: Any,
    path: tuple[str | int, ...],
    function: Callable[[Any, tuple[str | int, ...]], Any],
    copied: dict[int, Any],
) -> Any:
    """Rebuild plain containers with ``function`` applied to what they hold."""
    if id(value) in copied:
        return copied[id(value)]
    if type(value) is tuple:
        items = [_mapped(v, (*path, i), function, copied) for i, v in enumerate(value)]
        return tuple(items)
    if type(value) is list:
        result: list[Any] = []
        copied[id(value)] = result
        result.extend(_mapped(v, (*path, i), function, copied) for i, v in enumerate(value))
        return result
    if type(value) is dict:
        mapping: dict[Any, Any] = {}
        copied[id(value)] = mapping
        for key, v in value.items():
            inner = (*path, key) if isinstance(key, str | int) else None
            mapping[key] = _mapped(v, inner, function, copied) if inner else v
        return mapping
    if is_configuration(value):
        configuration = object.__new__(type(value))
        copied[id(value)] = configuration
        for name, v in vars(value).items():
            vars(configuration)[name] = _mapped(v, (*path, name), function, copied)
        return configuration
    return function(value, path)


_NO_CONFIGURATIONS = frozenset({"torch", "builtins", "functools", "types", "enum", "collections"})


def is_configuration(value: Any) -> bool:
    """Whether a value is an object of somebody's own class that only holds settings."""
    kind = type(value)
    if kind.__module__.split(".", 1)[0] in _NO_CONFIGURATIONS or not hasattr(value, "__dict__"):
        return False
    if isinstance(value, type | ModuleType | int | float | str | bytes | Enum) or callable(value):
        return False
    # A class with slots, or one that extends a container, has more to it than these.
    if kind.__itemsize__ or any("__slots__" in vars(k) for k in kind.__mro__[:-1]):
        return False
    if isinstance(value, Mapping | Sequence | Set | Iterator):
        return False
    return not any(isinstance(v, Tensor | nn.Module) or callable(v) for v in vars(value).values())
