"""Which functions of ``torch`` read channels, and which of their arguments is what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskprune.compensation.reads import (
    ConvGeometry,
    Geometry,
    ProductGeometry,
    StackGeometry,
    TransposedGeometry,
)


@dataclass(frozen=True, slots=True)
class Recognised:
    """One parameter's part in a call.

    Attributes:
        geometry: How it reads.
        x: The channels.
        weight: What they are read through.
        bias: What is added; ``None`` without one.
        block: Numbers of the matrix of the weight that this part reads through; empty for all.
        place: Where the part is in what the call returns; see :class:`~.reading_calls.Read`.
    """

    geometry: Geometry
    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    block: tuple[int, ...] = ()
    place: tuple[int, int, int] | None = None


def _numbers(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value) * (rank // len(value) or 1)


def _conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Iterable[Recognised]:
    rank = weight.ndim - 2
    kernel, dilations = tuple(weight.shape[2:]), _numbers(dilation, rank)
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pads = tuple((p, p) for p in _numbers(padding, rank))
    geometry = ConvGeometry(groups, kernel, _numbers(stride, rank), pads, dilations)
    yield Recognised(geometry, input, weight, bias)


def _transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    _padding: Any = 0,
    _output_padding: Any = 0,
    groups: int = 1,
    _dilation: Any = 1,
    **_others: Any,
) -> Iterable[Recognised]:
    geometry = TransposedGeometry(
        groups, tuple(weight.shape[2:]), _numbers(stride, weight.ndim - 2)
    )
    yield Recognised(geometry, input, weight, bias)


def _linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Iterable[Recognised]:
    yield Recognised(ProductGeometry(1), input, weight, bias)


def _matmul(input: Tensor, other: Tensor) -> Iterable[Recognised]:
    if other.ndim == 2:
        yield Recognised(ProductGeometry(0), input, other)
    elif other.ndim == 3 and input.ndim >= 3 and input.shape[-3] == other.shape[0]:
        yield Recognised(StackGeometry(1), input, other)


def _addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Iterable[Recognised]:
    if alpha == beta == 1:
        yield Recognised(ProductGeometry(0), mat1, mat2, input)


def _baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Iterable[Recognised]:
    if alpha == beta == 1:
        yield Recognised(StackGeometry(1), batch1, batch2, input)


def _grouped_mm(
    input: Tensor, mat2: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, **_: Any
) -> Iterable[Recognised]:
    if input.ndim == 2 and mat2.ndim == 3 and offs is not None and bias is None:
        ends = offs.tolist()
        for n, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
            rows = input[first:end]
            place = (-2, first, len(rows))
            yield Recognised(ProductGeometry(0), rows, mat2, None, (n,), place)


def _einsum(equation: str, *operands: Any) -> Iterable[Recognised]:
    tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) \
        else operands  # fmt: skip
    sides = equation.replace(" ", "").split("->")
    if len(tensors) != 2 or len(sides) != 2 or "..." in equation:
        return
    (left, right), out = sides[0].split(","), sides[1]
    for x, letters, weight, own in ((tensors[0], left, tensors[1], right),
                                    (tensors[1], right, tensors[0], left)):  # fmt: skip
        read = [c for c in own if c in letters and c not in out]
        made = [c for c in own if c not in letters and c in out]
        # Rows first, channels last: what a product with a matrix takes.
        if len(own) == 2 and len(read) == 1 and len(made) == 1 and out[-1] == made[0]:
            others = [c for c in out if c != made[0]]
            if sorted([*others, read[0]]) == sorted(letters):
                order = [letters.index(c) for c in (*others, read[0])]
                yield Recognised(ProductGeometry(own.index(read[0])), x.permute(order), weight)


def _recurrent(
    input: Tensor, _state: Any, third: Any, fourth: Any, *rest: Any
) -> Iterable[Recognised]:
    # Packed sequences: (data, batch sizes, state, weights, biases?, layers, dropout, train,
    # bidirectional); others: (input, state, weights, biases?, ...).
    packed = isinstance(fourth, list | tuple)
    weights, options = (fourth, rest) if packed else (third, (fourth, *rest))
    has_biases, n_layers, directions = options[0], options[1], 1 + options[4]
    each = len(weights) // (n_layers * directions)
    # Those of the first layer; what deeper layers and the state's weights read is not seen.
    for first in range(0, directions * each, each):
        bias = weights[first + 2] if has_biases else None
        yield Recognised(ProductGeometry(1, by_output=False), input, weights[first], bias)


_T: Any = Tensor

RECOGNISERS: dict[Any, Callable[..., Iterable[Recognised]]] = {
    torch.conv1d: _conv,
    torch.conv2d: _conv,
    torch.conv3d: _conv,
    torch.conv_transpose1d: _transposed,
    torch.conv_transpose2d: _transposed,
    torch.conv_transpose3d: _transposed,
    torch.nn.functional.linear: _linear,
    torch.matmul: _matmul,
    _T.matmul: _matmul,
    _T.__matmul__: _matmul,
    torch.mm: _matmul,
    _T.mm: _matmul,
    torch.bmm: _matmul,
    _T.bmm: _matmul,
    torch.addmm: _addmm,
    _T.addmm: _addmm,
    torch.baddbmm: _baddbmm,
    _T.baddbmm: _baddbmm,
    torch.einsum: _einsum,
    torch.lstm: _recurrent,
    torch.gru: _recurrent,
    torch.rnn_tanh: _recurrent,
    torch.rnn_relu: _recurrent,
}
if hasattr(torch, "_grouped_mm"):
    RECOGNISERS[torch._grouped_mm] = _grouped_mm
