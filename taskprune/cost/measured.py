"""Counting on a real model: parameters, and multiply-adds by PyTorch's own counter."""

from __future__ import annotations

from contextlib import ExitStack
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from taskprune.calling.forward import Forward, call_inputs
from taskprune.restore.borrow import borrowed, buffers_given_back
from taskprune.restore.caches import caches_given_back


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
    not counted. The model is given back as it was, whatever its forward left in it.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FUSED)
    call = forward or call_inputs
    with ExitStack() as stack:
        for given_back in (
            caches_given_back(model, call),
            borrowed(model),
            buffers_given_back(model),
            torch.no_grad(),
        ):
            stack.enter_context(given_back)
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # the counter fails on views of those that ask
        # Attention runs as the products it consists of; its fused forms are not all counted.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(counter)
        call(model, inputs)
    return counter.get_total_flops() // 2
