"""Predicted costs equal counted ones, and measuring leaves no trace."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taskprune.cost import count_macs, measure_latency, measure_macs, measure_params
from taskprune.coupling import couple
from taskprune.errors import InputError
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.testing import assert_cost_is_exact, random_drop, unchanged

sys.path.insert(0, str(Path(__file__).parents[1] / "rewrite"))
from small_nets import conv_net


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9])
def test_prediction_equals_count(ratio: float) -> None:
    made = conv_net()
    plan = build_plan(made.groups, random_drop(made.groups, ratio, seed=1))
    assert_cost_is_exact(made.model, made.groups, plan, made.inputs)


def test_wrong_prediction_is_noticed() -> None:
    made = conv_net()
    plan = build_plan(made.groups, random_drop(made.groups, 0.5, seed=1))
    with pytest.raises(AssertionError, match="MACs before"):
        assert_cost_is_exact(made.model, made.groups, plan, torch.cat([made.inputs] * 2))


def test_tied_parameters_count_once() -> None:
    embedding, output = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
    output.weight = embedding.weight
    assert measure_params(nn.Sequential(embedding, output)) == 21


def test_a_multiply_add_is_one_mac() -> None:
    assert measure_macs(nn.Linear(10, 20), torch.randn(4, 10)) == 4 * 10 * 20
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=4)
    assert measure_macs(conv, torch.randn(2, 8, 5, 6)) == 2 * 30 * 16 * 2 * 9


@pytest.mark.parametrize("training", [False, True])
def test_attention_is_counted_by_its_products(training: bool) -> None:
    tokens, width = 5, 8
    layer = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True).train(training)
    expected = tokens * (4 * width * width + 2 * width * 16) + 2 * tokens * tokens * width
    assert measure_macs(layer, torch.randn(1, tokens, width)) == expected
    assert layer.training is training
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("size", [(5, 8), (5, 3, 8)], ids=["one", "batch"])
def test_recurrent_layers_are_counted_however_they_run(
    kind: Callable[..., nn.Module], size: tuple[int, ...]
) -> None:
    layer, x = kind(8, 4, 2), torch.randn(size)
    weights = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    assert measure_macs(layer, x) == weights * x[..., 0].numel()
    assert count_macs(couple(trace(layer, x))) == measure_macs(layer, x)


def test_layers_that_run_fused_on_a_gpu_are_counted_by_their_shapes() -> None:
    layer = nn.LSTM(8, 4, 2, device="meta")
    x, state = torch.randn(5, 3, 8, device="meta"), torch.randn(2, 3, 4, device="meta")

    def fused(model: Any, x: Any) -> Any:
        options: Any = (4, 0, 2, False, 0.0, False, False, [], None)
        return torch._cudnn_rnn(x, model._flat_weights, 4, None, state, state, 2, *options)

    weights = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    assert measure_macs(layer, x, forward=fused) == weights * 5 * 3


class _Leaving(nn.Module):
    """Leaves its last result, and counts its calls in a buffer."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), torch.zeros(4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last = self.layer(x)
        return self.last


def test_counting_leaves_nothing_in_the_model() -> None:
    model, x = _Leaving(), torch.randn(2, 4)
    groups = couple(trace(model, x))
    with unchanged(model, but=["writes"]):
        assert measure_macs(model, x) == 2 * 16
        assert_cost_is_exact(model, groups, build_plan(groups, {}), x)


def test_timing_leaves_nothing_in_the_model() -> None:
    model, x = _Leaving(), torch.randn(2, 4)
    with unchanged(model, but=["writes"]):
        measure_latency({"a": model}, x, repeats=2, warmup=1)


def test_latency_compares_models_and_leaves_no_trace() -> None:
    models: dict[str, nn.Module] = {
        "a": nn.Linear(4, 4),
        "b": nn.Sequential(nn.Linear(4, 4), nn.Dropout()),
    }
    models["b"][1].eval()  # type: ignore[index]
    inputs = torch.randn(2, 4)
    rng = torch.get_rng_state()
    reports = measure_latency(models, inputs, repeats=5, warmup=1)
    assert list(reports) == ["a", "b"]
    for name, other in (("a", "b"), ("b", "a")):
        report = reports[name]
        assert report.lower_ms <= report.median_ms <= report.upper_ms
        assert report.repeats == 5
        assert report.ratio == {other: report.median_ms / reports[other].median_ms}
        assert "ms" in str(report)
    assert models["b"].training
    assert not models["b"][1].training  # type: ignore[index]
    assert torch.equal(rng, torch.get_rng_state())
    assert float(torch.tensor([1e-39]) * 1.0) != 0.0


@pytest.mark.parametrize("flushed", [False, True])
def test_denormal_setting_is_given_back_after_an_error(flushed: bool) -> None:
    seen: list[bool] = []

    def forward(model: nn.Module, inputs: torch.Tensor) -> None:
        seen.append(bool(inputs * 1.0 == 0))
        raise RuntimeError("stop")

    tiny = torch.tensor([1e-39])
    torch.set_flush_denormal(flushed)
    try:
        with pytest.raises(RuntimeError, match="stop"):
            measure_latency({"a": nn.Identity()}, tiny, forward=forward, repeats=2)
        assert seen == [True]
        assert bool(tiny * 1.0 == 0) is flushed
    finally:
        torch.set_flush_denormal(False)


def test_latency_needs_models_and_repeats() -> None:
    with pytest.raises(InputError, match="at least one model"):
        measure_latency({}, torch.randn(1))
    with pytest.raises(InputError, match="repeats=1"):
        measure_latency({"a": nn.Identity()}, torch.randn(1), repeats=1)
