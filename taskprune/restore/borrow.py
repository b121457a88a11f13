"""Borrow a model for a trace and give it back as it was, whatever its forward did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from taskprune.restore.modes import modes_given_back
from taskprune.restore.process import preserved_rng, without_cached_casts, without_fast_path


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Restore every module's attributes, registries and flags on exit, also on error.

    Covers training flags, attributes and buffers that a forward creates, replaces or deletes,
    containers it changes in place, hooks it registers, gradients and the random generators. A
    surrounding autocast keeps no casts of weights from inside.
    Entries of tensors are not covered, see :class:`TensorGuard`.
    """
    with (
        preserved_rng(),
        without_cached_casts(),
        without_fast_path(),
        modes_given_back(model),
        attributes_given_back(model),
    ):
        flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        try:
            yield
        finally:
            for parameter, requires_grad, grad in flags:
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)
                if parameter.grad is not grad:
                    parameter.grad = grad


@contextmanager
def attributes_given_back(model: nn.Module) -> Iterator[None]:
    """Restore every module's attributes and registries, and containers among them."""
    snapshots = [_snapshot(module) for module in model.modules()]
    try:
        yield
    finally:
        for restore in snapshots:
            restore()


@contextmanager
def buffers_given_back(model: nn.Module) -> Iterator[None]:
    """Restore the entries of all buffers."""
    buffers = [(b, b.detach().clone()) for b in model.buffers() if not b.is_meta]
    try:
        yield
    finally:
        for buffer, value in buffers:
            if not torch.equal(buffer, value):
                # `.data` leaves the version counter alone: for autograd nothing happened.
                buffer.data.copy_(value)


@contextmanager
def entrusted(model: nn.Module) -> Iterator[None]:
    """Do :func:`borrowed` for code that is not ours, which may do with the model what it likes.

    Entries of buffers and gradients and hooks on parameters are given back as well. Weights are
    not: copies of them would double the memory of a large model.
    """
    parameters = list(model.parameters())
    hooks = [(p, p._backward_hooks, dict(p._backward_hooks or {})) for p in parameters]
    with buffers_given_back(model), borrowed(model):
        for parameter in parameters:
            if parameter.grad is not None:
                # `backward` would add to the user's own.
                parameter.grad = parameter.grad.clone()
        try:
            yield
        finally:
            for parameter, registry, content in hooks:
                if registry is not None:
                    registry.clear()
                    registry.update(content)
                if parameter._backward_hooks is not registry:
                    parameter._backward_hooks = registry


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
