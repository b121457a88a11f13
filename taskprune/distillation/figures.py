"""Figures that users' code measures, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from taskprune.distillation.history import Callback, StepRecord
from taskprune.errors import InputError, short


def as_figure(value: Any, what: str) -> float:
    """Return a number, or a tensor or array that holds one, as a float.

    The history is JSON, which knows no tensors; torchmetrics returns nothing else.

    Args:
        value: What was measured.
        what: Names it in the error.

    Raises:
        InputError: It is something else.
    """
    try:
        # `float` would also read strings.
        if not isinstance(value, str | bytes):
            return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        pass
    shape = f" of shape {list(value.shape)}" if hasattr(value, "shape") else f" {short(value)}"
    raise InputError(
        f"{what} must be a number, or a tensor or array that holds one. Found "
        f"{type(value).__name__}{shape}."
    )


def called(callback: Callback, record: StepRecord, student: nn.Module) -> dict[str, float]:
    """Call a callback after a step and return the figures it measured.

    Raises:
        InputError: It returned neither a mapping from names to numbers nor ``None``.
    """
    found: Any = callback(record, student)
    if found is None:
        return {}
    name = getattr(callback, "__qualname__", type(callback).__qualname__)
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise InputError(
            f"The callback `{name}` must return a dict from names to numbers, or None. Found "
            f"{short(found)}, a {type(found).__name__}, after step {record.step}. Return for "
            "example {'lane': 0.5}."
        )
    return {
        key: as_figure(value, f"The figure `{key}` of the callback `{name}`")
        for key, value in found.items()
    }
