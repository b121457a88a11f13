"""How a batch reaches the model: one rule for tracing, scoring, verifying and distilling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from taskprune.errors import InputError

Forward: TypeAlias = Callable[[nn.Module, Any], Any]
"""``(model, batch) -> outputs``."""


def call_inputs(model: nn.Module, inputs: Any) -> Any:
    """Call ``model`` on example inputs: a tensor, a tuple of arguments, or a dict of keywords."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    raise InputError(
        "Example inputs must be a tensor, a tuple of positional arguments or a dict of keyword "
        f"arguments. Found {type(inputs).__name__}."
    )


def call_batch(model: nn.Module, batch: Any) -> Any:
    """Call ``model`` on a batch of a data loader, by the field's convention.

    A tensor is the input; a tuple or list is ``(inputs, *targets)`` and only its first element is
    passed on (itself a tensor, tuple or dict); a mapping is passed as keyword arguments. For any
    other layout hand your own ``forward=`` to the function that takes the data.
    """
    if isinstance(batch, tuple | list) and not isinstance(batch, Tensor):
        if not batch:
            raise InputError("A batch must hold at least the model's input. Found an empty one.")
        return call_inputs(model, batch[0])
    if isinstance(batch, Tensor | Mapping):
        return call_inputs(model, batch)
    raise InputError(
        f"Cannot tell how a batch of type {type(batch).__name__} reaches the model. Pass "
        "`forward=lambda model, batch: model(batch.images)` or the like."
    )
