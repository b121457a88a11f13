"""Where a batch lies: on the device of the model that it goes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def on_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with all its tensors on a device, those that are there as they are.

    Goes into lists, tuples and mappings; whatever has a method ``to`` is asked by it. The core does
    without Accelerate, whose ``send_to_device`` does the same.

    Args:
        batch: A tensor, or anything that holds some.
        device: Where to.
    """
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return type(batch)({key: on_device(part, device) for key, part in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(on_device(part, device) for part in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(on_device(part, device) for part in batch)
    return batch
