"""Answers given in torch's place are torch's own in shape, strides and type."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from taskprune.graph import trace
from taskprune.graph.contentless import contentless_result
from taskprune.graph.listening import _named_arguments

aten = torch.ops.aten


def image(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 6, 5, 4, dtype=dtype)


def norm(dtype: torch.dtype, training: bool, width: int = 6) -> tuple[Any, ...]:
    return (*(torch.ones(width, dtype=dtype) for _ in range(4)), training, 0.1, 1e-5)


def tokens(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 4, 3, 6, dtype=dtype)


def affine(dtype: torch.dtype) -> tuple[Any, ...]:
    return [6], torch.ones(6, dtype=dtype), torch.ones(6, dtype=dtype), 1e-5


F32, BF16 = torch.float32, torch.bfloat16
ANSWERED = {
    "batch_norm": (aten.native_batch_norm.default, (image(F32), *norm(F32, False))),
    "batch_norm_bf16": (aten.native_batch_norm.default, (image(BF16), *norm(BF16, False))),
    "batch_norm_channels_last": (
        aten.native_batch_norm.default,
        (image(F32).to(memory_format=torch.channels_last), *norm(F32, False)),
    ),
    "batch_norm_of_a_slice": (
        aten.native_batch_norm.default,
        (image(F32)[:, :, ::2], *norm(F32, False)),
    ),
    "batch_norm_without_affine": (
        aten.native_batch_norm.default,
        (image(F32), None, None, torch.ones(6), torch.ones(6), False, 0.1, 1e-5),
    ),
    "layer_norm": (aten.native_layer_norm.default, (tokens(F32), *affine(F32))),
    "layer_norm_bf16": (aten.native_layer_norm.default, (tokens(BF16), *affine(BF16))),
    "layer_norm_permuted": (
        aten.native_layer_norm.default,
        (image(F32).permute(0, 2, 3, 1), *affine(F32)),
    ),
    "layer_norm_without_affine": (
        aten.native_layer_norm.default,
        (tokens(F32), [3, 6], None, None, 1e-5),
    ),
    "addmm": (aten.addmm.default, (torch.ones(5), torch.ones(3, 4), torch.ones(4, 5))),
    "addmm_transposed": (
        aten.addmm.default,
        (torch.ones(5), torch.ones(4, 3).t(), torch.ones(4, 5)),
    ),
}
LEFT_TO_TORCH = {
    "batch_norm_mixed": (aten.native_batch_norm.default, (image(BF16), *norm(F32, False))),
    "batch_norm_in_training": (aten.native_batch_norm.default, (image(F32), *norm(F32, True))),
    "batch_norm_of_other_width": (
        aten.native_batch_norm.default,
        (image(F32), *norm(F32, False, width=5)),
    ),
    "layer_norm_mixed": (aten.native_layer_norm.default, (tokens(BF16), *affine(F32))),
    "layer_norm_of_other_width": (
        aten.native_layer_norm.default,
        (tokens(F32), [5], torch.ones(5), torch.ones(5), 1e-5),
    ),
    "addmm_of_other_width": (
        aten.addmm.default,
        (torch.ones(5), torch.ones(3, 4), torch.ones(3, 5)),
    ),
    "addmm_of_other_type": (
        aten.addmm.default,
        (torch.ones(5), torch.ones(3, 4), torch.ones(4, 5, dtype=BF16)),
    ),
    "relu": (aten.relu.default, (torch.ones(3),)),
}


def described(results: Any) -> list[tuple[Any, ...]]:
    tensors = results if isinstance(results, tuple) else (results,)
    return [(tuple(t.shape), t.stride(), t.dtype, t.device) for t in tensors]


@pytest.mark.parametrize("name", ANSWERED)
def test_an_answer_is_like_what_torch_computes(name: str) -> None:
    operator, arguments = ANSWERED[name]
    with torch.no_grad():
        real = described(operator(*arguments))
        with FakeTensorMode(allow_non_fake_inputs=True):
            answer = contentless_result(operator, _named_arguments(operator, arguments, {}))
            assert answer is not None
            assert described(answer) == described(operator(*arguments)) == real


@pytest.mark.parametrize("name", LEFT_TO_TORCH)
def test_what_is_out_of_the_ordinary_is_left_to_torch(name: str) -> None:
    operator, arguments = LEFT_TO_TORCH[name]
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert contentless_result(operator, _named_arguments(operator, arguments, {})) is None


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_given_back_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        trace(nn.Linear(3, 4), torch.ones(2, 3))
        assert gc.isenabled() == enabled
        with pytest.raises(Exception, match="forward raised"):
            trace(nn.Linear(3, 4), torch.ones(2, 5))
        assert gc.isenabled() == enabled
    finally:
        gc.enable() if before else gc.disable()
