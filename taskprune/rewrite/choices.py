"""Discrete choices of a forward pass (top-k, sorting, arg-max), remembered and repeated.

Equal scores are common where a model chooses: padding, invalid anchors, saturated logits. Which of
them comes first is decided by the last bit, and that bit differs between a masked and a pruned
model. Comparing the two then means comparing different queries. So the choices of the first
are repeated in the second, *provided* that its own scores call them ties.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DIM_POSITION = {"topk": 2, "sort": 1, "argsort": 1, "argmax": 1, "argmin": 1, "max": 1, "min": 1}
"""Where the dim stands among the positional arguments of each chooser."""

_CHOOSERS = {getattr(owner, name): name for owner in (torch, Tensor) for name in _DIM_POSITION}


class _Choosing(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = _CHOOSERS.get(func)
        if name is None:
            return result
        dim = _dim(name, args, kwargs or {})
        scores = args[0] if args else (kwargs or {}).get("input")
        if not isinstance(dim, int) or not isinstance(scores, Tensor):
            return result
        return self.choose(scores, dim, result)

    def choose(self, scores: Tensor, dim: int, result: Any) -> Any:
        raise NotImplementedError


class RecordedChoices(_Choosing):
    """Remembers the indices that a forward chooses, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.indices: list[Tensor] = []
        self.lengths: list[int] = []

    def choose(self, scores: Tensor, dim: int, result: Any) -> Any:
        """Take note of the chosen indices, and of how many there were to choose from."""
        self.indices.append(_indices(result).clone())
        self.lengths.append(scores.shape[dim])
        return result


class RepeatedChoices(_Choosing):
    """Repeats recorded choices wherever they are ties here, within ``tolerance``.

    Attributes:
        n_repeated: How many choices came out differently and were replaced.
    """

    def __init__(self, recorded: RecordedChoices, tolerance: float) -> None:
        super().__init__()
        self._recorded = zip(recorded.indices, recorded.lengths, strict=True)
        self._tolerance = tolerance
        self.n_repeated = 0

    def choose(self, scores: Tensor, dim: int, result: Any) -> Any:
        """Return the recorded choice in place of an equally good one of its own."""
        own = _indices(result)
        wanted, length = next(self._recorded, (own, scores.shape[dim]))
        if wanted.shape != own.shape or torch.equal(wanted, own):
            return result
        if length != scores.shape[dim]:
            # A choice among channels some of which are gone: the rest have other numbers.
            return result
        values = _take(scores, dim, wanted)
        difference = (values - _take(scores, dim, own)).abs()
        finite = torch.where(torch.isfinite(scores), scores, torch.zeros_like(scores))
        # Equal infinities differ by NaN: ties as well.
        difference = torch.nan_to_num(difference, nan=0.0)
        if not (difference <= self._tolerance * finite.abs().max().clamp(min=1e-12)).all():
            return result
        self.n_repeated += 1
        return wanted if isinstance(result, Tensor) else type(result)((values, wanted))


def _dim(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    position = _DIM_POSITION[name]
    if "dim" in kwargs:
        return kwargs["dim"]
    if len(args) > position:
        return args[position]
    return -1 if name in ("topk", "sort", "argsort") else None


def _indices(result: Any) -> Tensor:
    indices: Tensor = result if isinstance(result, Tensor) else result[1]
    return indices


def _take(scores: Tensor, dim: int, indices: Tensor) -> Tensor:
    """Gather along ``dim``, which ``indices`` may lack (``keepdim=False``)."""
    if indices.ndim < scores.ndim:
        return scores.gather(dim, indices.unsqueeze(dim)).squeeze(dim)
    return scores.gather(dim, indices)
