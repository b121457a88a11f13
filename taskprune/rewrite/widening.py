"""Keep a forward pass in float64 where its code asks for less.

Many norms, softmaxes and position tables compute in float32 whatever the model's dtype. Two models
that add up the same numbers in another order then differ by a float32 rounding step, ten thousand
times what their comparison in float64 allows. Under this mode such a request means float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})
_CASTS: Mapping[Any, Callable[..., Any]] = {
    Tensor.float: Tensor.double,
    Tensor.half: Tensor.double,
    Tensor.bfloat16: Tensor.double,
}
_BY_NAME = dict.fromkeys(
    ("torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"), "torch.DoubleTensor"
)


class InDouble(TorchFunctionMode):
    """Runs what asks for a narrower floating-point dtype in float64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` with float64 in place of every narrower dtype among its arguments."""
        # A cast of another tensor's dtype (`type_as`, `to(other)`) finds float64 there already.
        if func is Tensor.type:
            args = tuple(_BY_NAME.get(v, v) if isinstance(v, str) else v for v in args)
        return _CASTS.get(func, func)(
            *(_widened(value) for value in args),
            **{name: _widened(value) for name, value in (kwargs or {}).items()},
        )


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value
