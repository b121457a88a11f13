"""What standard modules say about their own sizes, read off their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from taskprune.cost.measured import evaluating

Describer: TypeAlias = Callable[[Any, Tensor], dict[str, Any]]


def _conv(module: Any, weight: Tensor) -> dict[str, Any]:
    outer, inner = weight.shape[0], weight.shape[1] * module.groups
    out_channels, in_channels = (inner, outer) if module.transposed else (outer, inner)
    return {"out_channels": out_channels, "in_channels": in_channels}


def _linear(_: Any, weight: Tensor) -> dict[str, Any]:
    return {"out_features": weight.shape[0], "in_features": weight.shape[1]}


def _bilinear(_: Any, weight: Tensor) -> dict[str, Any]:
    out_features, in1_features, in2_features = weight.shape
    return {
        "out_features": out_features,
        "in1_features": in1_features,
        "in2_features": in2_features,
    }


def _embedding(_: Any, weight: Tensor) -> dict[str, Any]:
    return {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}


def _channel_norm(_: Any, weight: Tensor) -> dict[str, Any]:
    return {"num_features": weight.shape[0]}


def _group_norm(_: Any, weight: Tensor) -> dict[str, Any]:
    return {"num_channels": weight.shape[0]}


def _layer_norm(_: Any, weight: Tensor) -> dict[str, Any]:
    return {"normalized_shape": tuple(weight.shape)}


def _prelu(_: Any, weight: Tensor) -> dict[str, Any]:
    return {"num_parameters": weight.numel()}


_DESCRIBERS: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Describer], ...] = (
    (_ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (_NormBase, _channel_norm),
    (nn.GroupNorm, _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.PReLU, _prelu),
)


def true_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the size attributes of a standard module by its tensors; empty for all others."""
    # In training mode some parametrised weights change whenever they are read.
    with evaluating(module):
        weight = getattr(module, "weight", None)
        if weight is None:
            weight = getattr(module, "running_mean", None)
    if not isinstance(weight, Tensor):
        return {}
    for kind, describe in _DESCRIBERS:
        if isinstance(module, kind):
            return describe(module, weight)
    return {}
