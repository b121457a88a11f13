"""One operator with concrete sizes: what is timed, and what its time is filed under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from taskprune.coupling.groups import OperatorSite, TensorForm
from taskprune.coupling.registry import operator_of


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and type of a tensor argument."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True, eq=False)
class OperatorCall:
    """An operator and its arguments, tensors as :class:`TensorSpec`.

    Attributes:
        operator: Such as ``"aten.convolution.default"``.
        arguments: By their schema names.
    """

    operator: str
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, site: OperatorSite, kept: Mapping[str, int]) -> OperatorCall:
        """Return the call at a site when group ``g`` keeps ``kept[g]`` channels."""
        arguments = {name: _concrete(value, kept) for name, value in site.arguments.items()}
        arguments.update(_sizes_in_numbers(site, arguments, kept))
        return cls(site.operator, arguments)

    @property
    def key(self) -> str:
        """The call as text."""
        inside = ", ".join(f"{name}={_text(value)}" for name, value in self.arguments.items())
        return f"{self.operator}({inside})"

    def made(self, device: torch.device) -> tuple[Any, dict[str, Any]]:
        """Return the operator as a callable, and arguments for it on a device.

        Floating-point tensors hold numbers in [0, 1), all others zeros, which are valid positions.
        """
        arguments = {
            name: device if name == "device" and value is not None else _tensors_made(value, device)
            for name, value in self.arguments.items()
        }
        return operator_of(self.operator), arguments


def _concrete(value: Any, kept: Mapping[str, int]) -> Any:
    if isinstance(value, TensorForm):
        return TensorSpec(value.sizes(kept), value.dtype)
    if isinstance(value, tuple):
        return tuple(_concrete(v, kept) for v in value)
    return value


def _sizes_in_numbers(
    site: OperatorSite, arguments: Mapping[str, Any], kept: Mapping[str, int]
) -> dict[str, Any]:
    """Return the plain numbers among the arguments that follow the sizes of tensors."""
    first = site.outputs[0] if site.outputs else None
    shape = first.sizes(kept) if first is not None else ()
    if site.operator == "aten.convolution.default":
        inputs, weight = arguments["input"], arguments["weight"]
        whole = shape[1] if arguments["transposed"] else inputs.shape[1]
        return {"groups": max(1, whole // max(1, weight.shape[1]))}
    if site.operator == "aten.native_layer_norm.default":
        rank = len(arguments["normalized_shape"])
        return {"normalized_shape": arguments["input"].shape[-rank:]}
    if site.operator == "aten.native_group_norm.default":
        batch, channels, *space = arguments["input"].shape
        return {"N": batch, "C": channels, "HxW": int(torch.Size(space).numel())}
    size = arguments.get("size")
    return {"size": shape} if isinstance(size, tuple) and len(size) == len(shape) else {}


def _text(value: Any) -> str:
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, tuple) else str(value)


def _tensors_made(value: Any, device: torch.device) -> Any:
    if isinstance(value, TensorSpec):
        if value.dtype.is_floating_point:
            return torch.rand(value.shape, device=device).to(value.dtype)
        return torch.zeros(value.shape, dtype=value.dtype, device=device)
    if isinstance(value, tuple):
        return [_tensors_made(v, device) for v in value]
    if isinstance(value, str) and value.startswith("torch."):
        return getattr(torch, value.removeprefix("torch."))
    return value
