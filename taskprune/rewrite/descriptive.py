"""What standard modules say about their own sizes, read off their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from taskprune.restore.modes import evaluating

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


def _recurrent(module: Any, hidden: Tensor) -> dict[str, Any]:
    # The first layer's weights under their names in a cell, or in a stack of layers.
    inputs = getattr(module, "weight_ih_l0", None)
    inputs = module.weight_ih if inputs is None else inputs
    gates = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
    n_gates = next((n for kind, n in gates.items() if isinstance(module, kind)), 1)
    sizes = {"input_size": inputs.shape[1], "hidden_size": inputs.shape[0] // n_gates}
    return {**sizes, "proj_size": hidden.shape[1]} if getattr(module, "proj_size", 0) else sizes


_DESCRIBERS: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Describer], ...] = (
    (_ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (_NormBase, _channel_norm),
    (nn.GroupNorm, _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.PReLU, _prelu),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
)

_DESCRIBING_TENSORS = ("weight", "running_mean", "weight_hh", "weight_hh_l0")
"""Which tensor of a layer tells its sizes, the first that it has."""


def true_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the size attributes of a standard module by its tensors; empty for all others."""
    # In training mode some parametrised weights change whenever they are read.
    with evaluating(module):
        tensors = (getattr(module, name, None) for name in _DESCRIBING_TENSORS)
        weight = next((tensor for tensor in tensors if isinstance(tensor, Tensor)), None)
        if weight is None:
            return {}
        for kind, describe in _DESCRIBERS:
            if isinstance(module, kind):
                return describe(module, weight)
    return {}
