"""Counting on a real model: parameters, and multiply-adds by PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from taskprune.calling.forward import Forward, call_inputs
from taskprune.restore.modes import evaluating
from taskprune.restore.process import preserved_rng, without_fast_path


def measure_params(model: nn.Module) -> int:
    """Count the entries of all parameters, tied ones once, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def measure_macs(model: nn.Module, inputs: Any, *, forward: Forward | None = None) -> int:
    """Count the multiply-adds of one forward pass in eval mode, for the whole batch.

    Counts matrix products, convolutions and attention, as ``torch.utils.flop_counter`` does; a
    multiply-add is two of its flops. Element-wise work and norms are not counted.
    """
    counter = FlopCounterMode(display=False)
    quiet: tuple[AbstractContextManager[Any], ...] = (
        evaluating(model),
        preserved_rng(),
        torch.no_grad(),
        _without_gradients(model),
    )
    with ExitStack() as stack:
        # Attention runs as the products it consists of; its fused forms are not all counted.
        for context in (*quiet, without_fast_path(), sdpa_kernel(SDPBackend.MATH), counter):
            stack.enter_context(context)
        (forward or call_inputs)(model, inputs)
    return counter.get_total_flops() // 2


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for gradients: the counter fails on views of those that do."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
