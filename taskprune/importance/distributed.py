"""Scores of N processes equal those of one: sums are added over processes before anything else.

Every process runs its own share of the batches; what they add up is summed over all of them where
the batches end, so that squares, ratios and ranks are taken of the same totals everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as processes


def several_processes() -> bool:
    """Return whether a group of more than one process is running, as under ``torchrun``."""
    return (
        processes.is_available() and processes.is_initialized() and processes.get_world_size() > 1
    )


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, where there are several."""
    if not several_processes():
        return tensor
    # NCCL moves tensors of the accelerator only.
    on_host = processes.get_backend() != "nccl"
    shared = tensor.detach().to("cpu" if on_host else "cuda", copy=True).contiguous()
    processes.all_reduce(shared)
    return shared.to(tensor.device)


def gathered(value: Any) -> list[Any]:
    """Return a picklable value of each process, by rank."""
    if not several_processes():
        return [value]
    values: list[Any] = [None] * processes.get_world_size()
    with torch.no_grad():
        processes.all_gather_object(values, value)
    return values
