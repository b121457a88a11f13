"""Results without content, where torch's own way to them is long.

Under fake tensors an operator only works out shapes. For some, torch runs a decomposition into a
dozen others to that end, again for every new combination of shapes; here those that make up most
of a forward pass are answered at once. Whatever is out of the ordinary is left to torch, errors
included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _batch_norm(arguments: Mapping[str, Any]) -> tuple[Tensor, ...] | None:
    """Batch norm by running statistics: entry by entry; on a CPU it saves no statistics."""
    inputs, mean = arguments["input"], arguments["running_mean"]
    if arguments["training"] or inputs.ndim < 2 or mean is None:
        return None
    per_channel = (mean, *(arguments[name] for name in ("running_var", "weight", "bias")))
    if not _alike([t for t in per_channel if t is not None], (inputs.shape[1],), inputs.dtype):
        return None
    shape = (0,) if inputs.device.type == "cpu" else tuple(mean.shape)
    saved = (aten.new_empty.default(inputs, shape) for _ in range(2))
    return (aten.empty_like.default(inputs), *saved)


def _layer_norm(arguments: Mapping[str, Any]) -> tuple[Tensor, ...] | None:
    """Layer norm: contiguous whatever it is given, statistics per position."""
    inputs, shape = arguments["input"], tuple(arguments["normalized_shape"])
    first = inputs.ndim - len(shape)
    affine = [t for t in (arguments["weight"], arguments["bias"]) if t is not None]
    if inputs.device.type != "cpu" or first < 0 or tuple(inputs.shape[first:]) != shape:
        return None
    if not _alike(affine, shape, inputs.dtype):
        return None
    positions = (*inputs.shape[:first], *[1] * len(shape))
    sizes = (tuple(inputs.shape), positions, positions)
    return tuple(aten.new_empty.default(inputs, size) for size in sizes)


def _addmm(arguments: Mapping[str, Any]) -> Tensor | None:
    """A linear layer with a bias: contiguous."""
    bias, left, right = (arguments[name] for name in ("self", "mat1", "mat2"))
    rows, columns = left.shape[0], right.shape[-1]
    alike = bias.dtype == left.dtype == right.dtype and bias.device == left.device == right.device
    fits = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0]
    if not alike or not fits or tuple(bias.shape) != (columns,):
        return None
    result: Tensor = aten.new_empty.default(left, (rows, columns))
    return result


def _alike(tensors: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return all(tuple(t.shape) == shape and t.dtype == dtype for t in tensors)


_ANSWERS: dict[Any, Callable[[Mapping[str, Any]], Any]] = {
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.addmm.default: _addmm,
}


def contentless_result(operator: Any, arguments: Mapping[str, Any]) -> Any:
    """Return fake results of an operator, like its own in shape, strides and type.

    Args:
        operator: The overload.
        arguments: By their schema names, defaults filled in.

    Returns:
        What the operator returns; ``None`` where torch has to be asked.
    """
    answer = _ANSWERS.get(operator)
    return None if answer is None else answer(arguments)
