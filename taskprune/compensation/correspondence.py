"""Whether rows of teacher and student are the same positions at a place of the forward pass.

After a suppression of boxes, a mask or a gather by computed indices, row 7 of the teacher and row 7
of the student are different objects, and regressing one on the other is nonsense. Such a choice
matters only where it hangs on weights: the same pixels are taken from the same picture by both.
Choices whose size is the same whatever the values are, as of a top-k, can be handed from the
teacher to the student (:mod:`.choice_following`), so behind these rows still correspond.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

CHOOSING = frozenset(("topk", "sort", "argsort", "argmax", "argmin"))
"""Functions that choose as many rows whatever the values are, and tell which."""

_ORDERING = frozenset(
    (
        *("msort", "kthvalue", "nms", "batched_nms", "unique"),
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


class Alignment(IntEnum):
    """Whether rows of teacher and student are the same positions."""

    SAME = 0
    """They are."""
    BY_CHOICE = 1
    """They are if the student takes what the teacher took."""
    NONE = 2
    """They are objects of their own."""


class Correspondence:
    """Follows, call by call, which tensors hang on weights, and which have rows of their own.

    Args:
        parameters: The model's.
    """

    def __init__(self, parameters: Iterator[Tensor]) -> None:
        self._alignment: Any = WeakIdKeyDictionary()
        self._computed: Any = WeakIdKeyDictionary()
        for parameter in parameters:
            self._computed[parameter] = True

    def of(self, tensor: Tensor) -> Alignment:
        """Return what the rows of a tensor are to each other."""
        found: Alignment = self._alignment.get(tensor, Alignment.SAME)
        return found

    def see(
        self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Take in one call."""
        inputs = list(_tensors((*args, *kwargs.values())))
        computed = [t for t in inputs if t in self._computed]
        alignment = max((self.of(t) for t in inputs), default=Alignment.SAME)
        if not computed and alignment == Alignment.SAME:
            return
        name = getattr(function, "__name__", "")
        chooses = name in CHOOSING
        if computed and chooses:
            alignment = max(alignment, Alignment.BY_CHOICE)
        if computed and name in _ORDERING:
            alignment = Alignment.NONE
        if name in _INDEXING and any(_is_index(t) for t in computed):
            alignment = Alignment.NONE
        outputs = list(_tensors((result,)))
        if name.endswith("_") or name == "__setitem__":
            outputs += inputs[:1]
        for tensor in outputs:
            # Which were chosen is the teacher's to say, and hangs on no weight of the student.
            if computed and not (chooses and _is_index(tensor)):
                self._computed[tensor] = True
            if alignment:
                self._alignment[tensor] = alignment


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
