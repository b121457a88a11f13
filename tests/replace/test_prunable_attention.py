"""The replacement computes what `torch.nn.MultiheadAttention` computes, for all of its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taskprune.replace import PrunableMultiheadAttention
from taskprune.testing import randomise_

WIDTH, HEADS, BATCH, N, M = 12, 4, 3, 5, 7


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(**options: Any) -> tuple[nn.MultiheadAttention, PrunableMultiheadAttention]:
    options = {"dtype": torch.float64, "batch_first": True} | options
    original = nn.MultiheadAttention(WIDTH, HEADS, **options)
    randomise_(original, seed=1)
    return original.eval(), PrunableMultiheadAttention.from_torch(original.eval())


def assert_equal(
    pair: tuple[nn.Module, nn.Module], *args: Tensor, tolerance: float = 1e-12, **keywords: Any
) -> None:
    # With gradients on, the original takes its readable path; without, the fused one.
    (attended, weights), (found, found_weights) = (module(*args, **keywords) for module in pair)
    torch.testing.assert_close(found, attended, rtol=tolerance, atol=tolerance)
    if weights is None:
        assert found_weights is None
    else:
        torch.testing.assert_close(found_weights, weights, rtol=tolerance, atol=tolerance)


def inputs(batch_first: bool = True, kdim: int = WIDTH, vdim: int = WIDTH) -> list[Tensor]:
    shapes = ((N, WIDTH), (M, kdim), (M, vdim))
    drawn = [draw(BATCH, *shape, seed=seed) for seed, shape in enumerate(shapes)]
    return drawn if batch_first else [x.transpose(0, 1) for x in drawn]


def masks(kind: str, batch: int = BATCH) -> Tensor | None:
    shape = (N, M) if "2d" in kind else (batch * HEADS, N, M)
    if kind == "none":
        return None
    scores = draw(*shape, seed=5)
    if "float" in kind:
        return scores
    blocked = scores > 0.3
    blocked[..., 0] = False  # a row in which all keys are blocked is not a number anywhere
    return blocked


def padding(kind: str) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "float":
        return draw(BATCH, M, seed=6)
    return torch.arange(M) >= torch.tensor([[M], [4], [2]])


def as_float(mask: Tensor) -> Tensor:
    return (
        mask
        if mask.is_floating_point()
        else torch.zeros(mask.shape).masked_fill(mask, float("-inf")).double()
    )


OPTIONS = [
    {},
    {"batch_first": False},
    {"bias": False},
    {"kdim": 6, "vdim": 10},
    {"kdim": 6, "bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "batch_first": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mask", ["none", "bool 2d", "float 2d", "bool 3d", "float 3d"])
@pytest.mark.parametrize("pad", ["none", "bool", "float"])
def test_the_replacement_equals_the_original(options: dict[str, Any], mask: str, pad: str) -> None:
    modules = pair(**options)
    args = inputs(
        options.get("batch_first", True), options.get("kdim", WIDTH), options.get("vdim", WIDTH)
    )
    given, keys = masks(mask), padding(pad)
    if given is not None and keys is not None and given.dtype != keys.dtype:
        given, keys = as_float(given), as_float(keys)  # torch warns of two kinds at once
    for need, average in ((False, True), (True, True), (True, False)):
        assert_equal(
            modules, *args, attn_mask=given, key_padding_mask=keys,
            need_weights=need, average_attn_weights=average,
        )  # fmt: skip


@pytest.mark.parametrize("need", [False, True])
@pytest.mark.parametrize("pad", ["none", "bool"])
def test_the_causal_hint_means_the_same(need: bool, pad: str) -> None:
    causal = torch.ones(N, N, dtype=torch.bool).triu(1)
    x = draw(BATCH, N, WIDTH, seed=0)
    keys = padding(pad)
    keys = None if keys is None else keys[:, :N]
    assert_equal(
        pair(), x, x, x,
        attn_mask=causal, key_padding_mask=keys, need_weights=need, is_causal=True,
    )  # fmt: skip


def test_the_causal_hint_without_a_mask_is_refused_by_both() -> None:
    x = draw(BATCH, N, WIDTH, seed=0)
    for module in pair():
        with pytest.raises(RuntimeError, match="is_causal"):
            module(x, x, x, is_causal=True)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
@pytest.mark.parametrize("need", [False, True])
def test_the_causal_hint_means_the_same_with_more_keys(options: dict[str, Any], need: bool) -> None:
    causal = torch.ones(N, N, dtype=torch.bool).triu(1)
    x = draw(BATCH, N, WIDTH, seed=0)
    assert_equal(pair(**options), x, x, x, attn_mask=causal, need_weights=need, is_causal=True)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need", [True, False])
def test_inputs_without_a_batch_are_equal(batch_first: bool, need: bool) -> None:
    args = [draw(n, WIDTH, seed=n) for n in (N, M, M)]
    keys = torch.arange(M) >= 4
    for mask in (None, masks("bool 2d"), masks("bool 3d", batch=1)):
        assert_equal(
            pair(batch_first=batch_first), *args,
            attn_mask=mask, key_padding_mask=keys, need_weights=need,
        )  # fmt: skip


def test_the_fused_inference_path_is_equal_too() -> None:
    x = draw(BATCH, N, WIDTH, seed=0, dtype=torch.float32)
    with torch.no_grad():
        assert_equal(pair(dtype=torch.float32), x, x, x, tolerance=1e-6)


@pytest.mark.parametrize("need", [True, False])
def test_float32_is_equal_up_to_rounding(need: bool) -> None:
    x = draw(BATCH, N, WIDTH, seed=0, dtype=torch.float32)
    assert_equal(pair(dtype=torch.float32), x, x, x, tolerance=1e-6, need_weights=need)


@pytest.mark.parametrize("need", [True, False])
def test_dropout_drops_the_same_from_one_seed(need: bool) -> None:
    x = draw(BATCH, N, WIDTH, seed=0)
    results = []
    for module in pair(dropout=0.4):
        torch.manual_seed(3)
        results.append(module.train()(x, x, x, need_weights=need)[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(results[1], pair(dropout=0.4)[1](x, x, x)[0])


def test_gradients_are_those_of_the_original() -> None:
    original, replacement = pair()
    for module in (original, replacement):
        args = inputs()
        module(*args)[0].square().sum().backward()
    for name, parameter in original.named_parameters():
        assert parameter.grad is not None
        for part, rows in PrunableMultiheadAttention.parts_of(name, WIDTH):
            found = replacement.get_parameter(part).grad
            torch.testing.assert_close(found, parameter.grad[rows], rtol=1e-10, atol=1e-10)


def test_what_the_user_set_is_kept() -> None:
    original = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.bfloat16).train()
    original.in_proj_weight.requires_grad_(False)
    original.out_proj.weight.grad = torch.ones_like(original.out_proj.weight)
    found = PrunableMultiheadAttention.from_torch(original)
    assert found.training
    assert not any(p.training is False for p in found.modules())
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
    frozen = {name for name, p in found.named_parameters() if not p.requires_grad}
    assert frozen == {"q_proj.weight", "k_proj.weight", "v_proj.weight"}
    gradient = found.out_proj.weight.grad
    assert gradient is not None
    assert torch.equal(gradient, torch.ones_like(gradient))
    with torch.no_grad():
        found.k_proj.weight.zero_()  # they lie in the memory of the original's
    assert not original.in_proj_weight[WIDTH : 2 * WIDTH].any()


def test_sizes_are_told_like_the_originals() -> None:
    original, found = pair(kdim=6, vdim=10)
    for name in ("embed_dim", "kdim", "vdim", "num_heads", "head_dim", "batch_first", "dropout"):
        assert getattr(found, name) == getattr(original, name), name
