"""Norms of a masked model, with statistics over the kept channels only.

Zeroing channels is not the same as removing them where a norm takes its statistics *across* them:
the zeros count. Inside :class:`KeptStatistics` they do not, so that the masked original equals the
pruned model there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from taskprune.plan.decisions import KeptEntries
from taskprune.rewrite.surgery import named_tensors

HANDLED_OPERATORS = ("layer_norm", "group_norm", "rms_norm")
"""Parts of the names of operators across channels that :class:`KeptStatistics` makes exact."""


def keep_mask(kept: KeptEntries) -> Tensor:
    """Return a boolean vector over the original entries, true where they stay."""
    mask = torch.zeros(kept.size, dtype=torch.bool, device="cpu")
    mask[list(kept.keep)] = True
    return mask


class KeptStatistics(TorchFunctionMode):
    """Makes layer, group and RMS norms of a masked model ignore the masked channels.

    A norm is recognised by its scale (or shift), one of the model's masked parameters. One without
    parameters is recognised by the module that runs it, from the plan's activations.

    Args:
        model: The masked model whose forward will run.
        tensors: The plan's kept entries of parameters and buffers.
        activations: The plan's kept entries of module outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Iterable[KeptEntries],
        activations: Iterable[KeptEntries] = (),
    ) -> None:
        super().__init__()
        named = named_tensors(model)
        self._by_tensor: dict[int, list[KeptEntries]] = {}
        for kept in tensors:
            if kept.name in named:
                self._by_tensor.setdefault(id(named[kept.name]), []).append(kept)
        bare = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm)
            and module.weight is None
        }
        self._by_module: dict[int, list[KeptEntries]] = {}
        for kept in activations:
            if kept.name in bare:
                self._by_module.setdefault(id(bare[kept.name]), []).append(kept)
        self._running: list[nn.Module] = []
        self._hooks: list[Any] = []
        self._modules = list(bare.values()) if self._by_module else []

    def __enter__(self) -> Any:
        for module in self._modules:
            self._hooks.append(module.register_forward_pre_hook(self._begin))
            self._hooks.append(module.register_forward_hook(self._end, always_call=True))
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._running.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _begin(self, module: nn.Module, _: Any) -> None:
        self._running.append(module)

    def _end(self, *_: Any) -> None:
        self._running.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(self, *args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))

    def mask_of(
        self, tensors: tuple[Tensor | None, ...], shape: tuple[int, ...], first_dim: int
    ) -> Tensor | None:
        """Return which of the normalised entries stay, or ``None`` if nothing is masked.

        Args:
            tensors: Scale and shift, where there are any.
            shape: Shape of the normalised block.
            first_dim: The first dim of the activation that is normalised.
        """
        for tensor in tensors:
            if tensor is not None and id(tensor) in self._by_tensor:
                return _block_mask([(k.dim, k) for k in self._by_tensor[id(tensor)]], shape)
        if all(tensor is None for tensor in tensors) and self._running:
            kept = self._by_module.get(id(self._running[-1]), [])
            if kept:
                return _block_mask([(k.dim - first_dim, k) for k in kept], shape)
        return None


def _block_mask(kept: list[tuple[int, KeptEntries]], shape: tuple[int, ...]) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool, device="cpu")
    for dim, entries in kept:
        view = [1] * len(shape)
        view[dim] = entries.size
        mask = mask & keep_mask(entries).view(view)
    return mask


def _layer_norm(
    mode: KeptStatistics,
    input: Tensor,
    normalized_shape: Iterable[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001 - torch's signature
) -> Tensor | None:
    shape = tuple(normalized_shape)
    mask = mode.mask_of((weight, bias), shape, input.ndim - len(shape))
    if mask is None:
        return None
    mask = mask.to(input.device)
    dims = tuple(range(-len(shape), 0))
    n_kept = int(mask.sum())
    mean = (input * mask).sum(dims, keepdim=True) / n_kept
    centred = (input - mean) * mask
    variance = centred.square().sum(dims, keepdim=True) / n_kept
    return _affine(centred * torch.rsqrt(variance + eps), weight, bias)


def _rms_norm(
    mode: KeptStatistics,
    input: Tensor,
    normalized_shape: Iterable[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor | None:
    shape = tuple(normalized_shape)
    mask = mode.mask_of((weight,), shape, input.ndim - len(shape))
    if mask is None:
        return None
    mask = mask.to(input.device)
    dims = tuple(range(-len(shape), 0))
    kept = input * mask
    mean_square = kept.square().sum(dims, keepdim=True) / int(mask.sum())
    epsilon = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(kept * torch.rsqrt(mean_square + epsilon), weight, None)


def _group_norm(
    mode: KeptStatistics,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001 - torch's signature
) -> Tensor | None:
    n_channels = input.shape[1]
    mask = mode.mask_of((weight, bias), (n_channels,), 1)
    if mask is None:
        return None
    blocks = input.reshape(input.shape[0], num_groups, n_channels // num_groups, -1)
    weights = mask.to(input.device).view(1, num_groups, -1, 1).to(input.dtype)
    # A conv group may be gone altogether; its channels are zero, whatever the divisor.
    count = (weights.sum(dim=2, keepdim=True) * blocks.shape[-1]).clamp(min=1)
    mean = (blocks * weights).sum(dim=(2, 3), keepdim=True) / count
    centred = (blocks - mean) * weights
    variance = centred.square().sum(dim=(2, 3), keepdim=True) / count
    normed = (centred * torch.rsqrt(variance + eps)).reshape(input.shape)
    per_channel = (1, n_channels) + (1,) * (input.ndim - 2)
    return _affine(
        normed,
        None if weight is None else weight.view(per_channel),
        None if bias is None else bias.view(per_channel),
    )


def _affine(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = normed if weight is None else normed * weight
    return scaled if bias is None else scaled + bias


_HANDLERS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
}
