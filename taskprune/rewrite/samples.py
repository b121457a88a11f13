"""What a comparison is made on: example inputs in another dtype, or the first samples of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

SMALL_WORK = 2**36
"""Parameters times input entries up to which a comparison takes in all samples there are."""

FEWEST_SAMPLES = 2
"""With two, what a model does across samples (statistics of a batch, a sequence) still happens."""

_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return floating-point numbers in ``dtype``, complex ones made of it, others as they are."""
    if dtype is None:
        return tensor
    if tensor.is_floating_point():
        return tensor.to(dtype)
    return tensor.to(_COMPLEX[dtype]) if tensor.is_complex() and dtype in _COMPLEX else tensor


def cast_floats(inputs: Any, dtype: torch.dtype) -> Any:
    """Return a copy of nested inputs with all floating-point tensors in ``dtype``."""
    return _mapped(inputs, lambda tensor: cast(tensor.detach(), dtype))


def first_samples(model: nn.Module, inputs: Any) -> tuple[Any, tuple[int, int] | None]:
    """Return as many samples as it takes to compare two versions of a model.

    All there are for a small model, whose ReLUs may be silent on most of them; two of a large one,
    each of which has many positions.

    Args:
        model: Of its parameters the number counts.
        inputs: Nested inputs. Dim 0 of the first tensor is the samples, and so is that of all
            tensors as long; others are left as they are.

    Returns:
        The inputs and ``(samples in them, samples there are)``; ``None`` if they hold no tensor.
    """
    tensors: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    _mapped(inputs, note)
    if not tensors or not tensors[0].ndim or not len(tensors[0]):
        return inputs, None
    available = len(tensors[0])

    def has_samples(tensor: Tensor) -> bool:
        return tensor.ndim > 0 and len(tensor) == available

    entries = sum(tensor.numel() // available for tensor in tensors if has_samples(tensor))
    work = entries * sum(parameter.numel() for parameter in model.parameters())
    n = min(available, max(FEWEST_SAMPLES, SMALL_WORK // max(work, 1)))
    if n == available:
        return inputs, (n, n)
    part = _mapped(inputs, lambda tensor: tensor[:n] if has_samples(tensor) else tensor)
    return part, (n, available)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of nested inputs with ``function`` called on every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        items = {key: _mapped(item, function) for key, item in value.items()}
        try:
            return type(value)(items)  # type: ignore[call-arg]
        except TypeError:
            return items
    if isinstance(value, tuple | list):
        parts = [_mapped(item, function) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            field.name: _mapped(getattr(value, field.name), function)
            for field in dataclasses.fields(value)
            if field.init
        }
        return dataclasses.replace(value, **changed)
    return value
