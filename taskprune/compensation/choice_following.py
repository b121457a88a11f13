"""Where a model takes rows by their value, the student takes those that the teacher took.

A top-k picks the most promising cells of a picture. Two networks that differ a little pick a few
other ones, in another order, and from there on their rows are different objects. While readers are
fitted, the student is handed the teacher's choice, with values of its own: row 7 is the same cell
in both, and what reads it can be fitted to what it will read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from taskprune.compensation.correspondence import CHOOSING

_DIM_COMES = {"topk": 2, "sort": 1, "argsort": 1, "argmax": 1, "argmin": 1}
"""Where the dim stands among the arguments, unless it is named."""


@dataclass(frozen=True, eq=False, slots=True)
class _Choice:
    name: str
    read: torch.Size
    indices: Tensor


class Choices(TorchFunctionMode):
    """What a model chose on one batch, in order; on it, the model runs as it does without."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[_Choice] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if name := _chooses(func):
            indices = result if isinstance(result, Tensor) else result[1]
            self.made.append(_Choice(name, _read(args, kwargs or {}).shape, indices))
        return result


class Following(TorchFunctionMode):
    """Lets a model choose as another did.

    Args:
        leader: What that chose, and will choose.
        wait: Called with how many choices are needed before they are looked at.

    Attributes:
        is_lost: Whether this model chose something where the other did not; from there on rows
            are its own.
    """

    def __init__(self, leader: Choices, wait: Callable[[int], None]) -> None:
        super().__init__()
        self.is_lost = False
        self._leader, self._wait, self._n = leader, wait, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _chooses(func)
        if not name or self.is_lost:
            return func(*args, **kwargs)
        self._n += 1
        self._wait(self._n)
        x, made = _read(args, kwargs), self._leader.made
        chosen = made[self._n - 1] if self._n <= len(made) else None
        if chosen is None or (chosen.name, chosen.read) != (name, x.shape) or "out" in kwargs:
            self.is_lost = True
            return func(*args, **kwargs)
        # A copy: the model may write to what it is given.
        indices = chosen.indices.clone()
        if name.startswith("arg"):
            return indices
        place = _DIM_COMES[name]
        dim = kwargs.get("dim", args[place] if len(args) > place else -1)
        values = x.gather(dim, indices)
        return getattr(torch.return_types, name)((values, indices))


def _chooses(func: Any) -> str:
    name = getattr(func, "__name__", "")
    return name if name in CHOOSING else ""


def _read(args: tuple[Any, ...], kwargs: Any) -> Tensor:
    found: Tensor = args[0] if args else kwargs["input"]
    return found
