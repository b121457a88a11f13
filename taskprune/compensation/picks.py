"""Matrices that are picked out of a stack one by one: experts of a mixture, layers in a loop.

Each is a reader of its own, ``experts.up[3]`` by name: its rows are those that were sent to it. So
is each matrix of a grouped product, to which rows are sent that lie side by side.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_T: Any = Tensor
_UNBINDING = {torch.unbind, _T.unbind}
_SELECTING = {torch.select, _T.select}
_NUMBERS = (torch.int8, torch.int16, torch.int32, torch.int64)  # uint8 is a mask


def spelled(stack: str, block: tuple[int, ...]) -> str:
    """Return the name of a part of a parameter."""
    return f"{stack}[{', '.join(map(str, block))}]" if block else stack


def located(name: str, tensors: Container[str]) -> tuple[str, tuple[int, ...]]:
    """Return the tensor that a name is of, and the numbers of the part; none for the whole."""
    if name in tensors or not name.endswith("]"):
        return name, ()
    stack, _, block = name[:-1].rpartition("[")
    return stack, tuple(map(int, block.split(", ")))


def part_of(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return what a name stands for, as a view that may be written to."""
    stack, block = located(name, tensors)
    return tensors[stack].detach()[block]


def picked(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Return the parts that a call picks by their numbers in the leading dims, and these.

    Empty where it does anything else: takes several at once, cuts, masks or adds dims.
    """
    stack = args[0] if args else None
    if not isinstance(stack, Tensor):
        return []
    if function in _UNBINDING:
        (dim,) = _given(("dim",), args, {"dim": 0} | dict(kwargs))
        return [(part, (n,)) for n, part in enumerate(result)] if dim % stack.ndim == 0 else []
    if function in _SELECTING:
        dim, index = _given(("dim", "index"), args, kwargs)
        wanted = [index] if isinstance(dim, int) and dim % stack.ndim == 0 else []
    elif function is _T.__getitem__:
        wanted = list(args[1]) if isinstance(args[1], tuple) else [args[1]]
        while wanted and (wanted[-1] is Ellipsis or _is_all(wanted[-1])):
            wanted.pop()
    else:
        return []
    numbers = [_number(value) for value in wanted]
    block = tuple(n % size for n, size in zip(numbers, stack.shape, strict=False) if n is not None)
    return [(result, block)] if block and len(block) == len(wanted) else []


def _given(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    given = dict(kwargs) | dict(zip(names, args[1:], strict=False))
    return [given.get(name) for name in names]


def _is_all(value: Any) -> bool:
    return isinstance(value, slice) and value == slice(None)


def _number(value: Any) -> int | None:
    """Return an index as a number; ``None`` where it is something else."""
    if isinstance(value, Tensor):
        return int(value) if value.ndim == 0 and value.dtype in _NUMBERS else None
    is_number = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return int(value) if is_number else None
