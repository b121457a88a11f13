"""Lend a batch to code that may write to it, and get it back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

Restore = Callable[[], None]


@contextmanager
def lent(batch: Any) -> Iterator[None]:
    """Restore the tensors and containers of a batch on exit, also on error.

    A model may normalise its input in place and a loss may take labels out of a dict: nothing to
    worry about in a loop that draws each batch once, but whoever runs the batch again would find
    another one. The batch itself is lent, not a copy: model and losses see the same objects, and
    see what the other did to them, as in any training loop.

    Leave it after the backward: what it writes to may be saved for that.

    Args:
        batch: Tensors and arrays, at any depth of dicts, lists, tuples and objects.
    """
    restores: list[Restore] = []
    _remember(batch, restores, {})
    try:
        yield
    finally:
        for restore in restores:
            restore()


def _remember(node: Any, restores: list[Restore], seen: dict[int, Any]) -> None:
    if id(node) in seen:
        return
    seen[id(node)] = node  # holds it, so that no id is used twice
    if isinstance(node, Tensor):
        # Tensors of inference mode count no writes, and nobody can write to them outside of it.
        if not node.is_inference():
            restores.append(_tensor(node))
    elif isinstance(node, np.ndarray):
        if node.flags.writeable:
            restores.append(_array(node))
    else:
        if isinstance(node, dict):
            restores.append(_mapping(node))
        elif isinstance(node, list):
            restores.append(_list(node))
        elif _has_attributes(node):
            restores.append(_mapping(vars(node)))
        for child in _children(node):
            _remember(child, restores, seen)


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    if isinstance(node, list | tuple):
        return list(node)
    if _has_attributes(node):
        return list(vars(node).values())
    if is_dataclass(node) and not isinstance(node, type):  # one with slots
        return [getattr(node, field.name) for field in fields(node)]
    return []


def _has_attributes(node: Any) -> bool:
    # A batch that knows where it comes from: the data set is not lent.
    if callable(node) or isinstance(node, ModuleType | Iterator | Dataset):
        return False
    return hasattr(node, "__dict__")


def _tensor(tensor: Tensor) -> Restore:
    version, before = tensor._version, tensor.detach().clone()

    def restore() -> None:
        if tensor._version == version:
            return
        with torch.no_grad():
            if tensor.shape == before.shape:
                tensor.copy_(before)
            else:  # `unsqueeze_` and the like
                tensor.data = before

    return restore


def _array(array: np.ndarray[Any, Any]) -> Restore:
    before = array.copy()
    return lambda: np.copyto(array, before)


def _mapping(mapping: dict[Any, Any]) -> Restore:
    before = dict(mapping)

    def restore() -> None:
        if not _same([*mapping, *mapping.values()], [*before, *before.values()]):
            mapping.clear()
            mapping.update(before)

    return restore


def _list(items: list[Any]) -> Restore:
    before = list(items)

    def restore() -> None:
        if not _same(items, before):
            items[:] = before

    return restore


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
