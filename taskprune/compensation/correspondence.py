"""Whether rows of teacher and student are the same positions at a place of the forward pass.

After a top-k, a sort, a gather by computed indices or a suppression of boxes, row 7 of the teacher
and row 7 of the student are different objects, and regressing one on the other is nonsense. Such
a choice matters only where it hangs on weights: the same pixels are taken from the same picture by
both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_ORDERING = frozenset(
    (
        *("topk", "sort", "argsort", "msort", "kthvalue", "nms", "batched_nms", "unique"),
        *("unique_consecutive", "multinomial", "nonzero", "argwhere", "masked_select"),
    )
)
"""Functions whose result's rows hang on values."""

_INDEXING = frozenset(
    (
        *("gather", "index_select", "take", "take_along_dim", "index_add", "index_add_"),
        *("index_copy", "index_copy_", "index_put", "index_put_", "scatter", "scatter_"),
        *("scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "embedding"),
        *("embedding_bag", "one_hot", "max_unpool1d", "max_unpool2d", "max_unpool3d"),
        *("__getitem__", "__setitem__"),
    )
)
"""Functions that take rows by number or by mask."""


_LEAVING = frozenset(
    ("item", "tolist", "numpy", "__int__", "__index__", "__bool__", "__float__", "__array__")
)
"""Functions that make Python's numbers of a tensor's."""


class Correspondence:
    """Follows, call by call, which tensors hang on weights, and which have rows of their own.

    Args:
        parameters: The model's.

    Attributes:
        has_left: Whether a number that hangs on weights has become one of Python's. What the code
            does with it nobody sees.
    """

    def __init__(self, parameters: Iterator[Tensor]) -> None:
        self._computed: Any = WeakIdKeyDictionary()
        self._reordered: Any = WeakIdKeyDictionary()
        self.has_left = False
        for parameter in parameters:
            self._computed[parameter] = True

    def holds(self, tensor: Tensor) -> bool:
        """Return whether the rows of a tensor are the same positions in both networks."""
        return tensor not in self._reordered

    def see(
        self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Take in one call."""
        inputs = list(_tensors((*args, *kwargs.values())))
        computed = [t for t in inputs if t in self._computed]
        if not computed:
            return
        name = getattr(function, "__name__", "")
        self.has_left |= name in _LEAVING
        reordered = any(t in self._reordered for t in inputs)
        if not reordered and name in _ORDERING:
            reordered = True
        if not reordered and name in _INDEXING:
            reordered = any(_is_index(t) for t in computed)
        outputs = list(_tensors((result,)))
        if name.endswith("_") or name == "__setitem__":
            outputs += inputs[:1]
        for tensor in outputs:
            self._computed[tensor] = True
            if reordered:
                self._reordered[tensor] = True


def _is_index(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, torch.nn.utils.rnn.PackedSequence):
            yield value.data
