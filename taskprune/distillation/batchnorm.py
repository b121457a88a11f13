"""What becomes of batch normalisation's statistics after pruning: estimated anew, or kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from taskprune.calling.forward import Forward, call_batch
from taskprune.errors import InputError


def recalibrate_batchnorm(
    model: nn.Module,
    data: Iterable[Any],
    *,
    forward: Forward = call_batch,
    n_batches: int = 50,
) -> int:
    """Replace running means and variances by averages over batches of data.

    Removing channels shifts what the layers behind them see, so the stored statistics no longer
    fit. Only the normalisation layers run in training mode (dropout and the like stay off); no
    parameter changes and training flags are given back. After an error, so are the old statistics.

    Args:
        model: Changed in place: the buffers of its batch normalisation layers.
        data: Batches; they are moved to the model's device.
        forward: ``(model, batch) -> outputs``.
        n_batches: How many batches to use at most.

    Returns:
        How many layers have new statistics.

    Raises:
        InputError: No batch to look at, or what a layer saw is NaN or infinite.
    """
    from accelerate.utils import send_to_device  # an extra, like all training

    if n_batches < 1:
        raise InputError(f"`n_batches` must be at least 1. Found {n_batches}.")
    layers = _with_statistics(model)
    if not layers:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers.values()]
    buffers = [buffer for layer in layers.values() for buffer in layer.buffers(recurse=False)]
    device = buffers[0].device
    before = [buffer.clone() for buffer in buffers]
    done = 0
    try:
        model.eval()
        for layer in layers.values():
            layer.reset_running_stats()
            layer.momentum = None  # the plain average over batches
            layer.train()
        with torch.no_grad():
            for batch in islice(data, n_batches):
                forward(model, send_to_device(batch, device))
                done += 1
        if not done:
            raise InputError("`data` holds no batch to estimate statistics from.")
        _check_finite(layers)
    except BaseException:
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)
        raise
    finally:
        for layer, momentum in zip(layers.values(), momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(layers)


def freeze_batchnorm(model: nn.Module) -> None:
    """Let batch normalisation use its running statistics, and leave them as they are.

    Args:
        model: Changed in place: the training flags of those layers that have statistics.
    """
    for layer in _with_statistics(model).values():
        layer.eval()


def _with_statistics(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def _check_finite(layers: Mapping[str, _BatchNorm]) -> None:
    for path, layer in layers.items():
        for name in ("running_mean", "running_var"):
            if not torch.isfinite(getattr(layer, name)).all():
                raise InputError(
                    f"Expected finite statistics. Found NaN or infinity in `{name}` of "
                    f"`{path or 'the model'}`: look for it in the batches and in the weights "
                    "before that layer. The old statistics are kept."
                )
