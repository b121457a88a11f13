"""Counting on a real model: parameters, and multiply-adds by PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from taskprune.calling.forward import Forward, call_inputs
from taskprune.restore.modes import evaluating
from taskprune.restore.process import preserved_rng, without_fast_path


def _flops_of_layer(x: Any, from_input: Any, from_state: Any, *_: Any, **__: Any) -> int:
    return int(2 * prod(x[:-1]) * (prod(from_input) + prod(from_state)))


def _flops_of_layers(x: Any, weights: Any, *_: Any, **__: Any) -> int:
    return int(2 * prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2))


_FUSED = {
    torch.ops.aten.mkldnn_rnn_layer: _flops_of_layer,
    torch.ops.aten._cudnn_rnn: _flops_of_layers,
}
"""Flops of fused recurrent layers, by the shapes of their arguments: torch's counter has none."""


def measure_params(model: nn.Module) -> int:
    """Count the entries of all parameters, tied ones once, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def measure_macs(model: nn.Module, inputs: Any, *, forward: Forward | None = None) -> int:
    """Count the multiply-adds of one forward pass in eval mode, for the whole batch.

    Counts matrix products, convolutions and attention, as ``torch.utils.flop_counter`` does, and
    the products of recurrent layers; a multiply-add is two flops. Element-wise work and norms are
    not counted.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FUSED)
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
