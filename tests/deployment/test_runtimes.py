"""Budgets of latency in the runtime that will run the model; nothing is timed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import taskprune
from taskprune import Budget, PruneSettings
from taskprune.calling.forward import call_inputs
from taskprune.cost import CachedTimer, LatencyReport, OperatorCall
from taskprune.cost.operator_call import TensorSpec
from taskprune.deployment import file_formats, latency, runtimes
from taskprune.deployment.latency import ModelTimer, landed
from taskprune.deployment.runtimes import in_runtime, running
from taskprune.errors import ExportError, InputError, MissingDependencyError
from taskprune.plan.plan import PruningPlan

X = torch.rand(2, 3, 12, 12)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 4, 1),
    ).train()


def test_onnx_runtime_computes_what_the_model_does_and_leaves_it_alone() -> None:
    model = net()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = in_runtime(model, (X,), call_inputs, "onnx")
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(found(X), model.eval()(X), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("runtime", ["tensorrt", None, "ONNX"])
def test_unknown_runtimes_are_refused(runtime: Any) -> None:
    with pytest.raises(InputError, match="'eager', 'compiled' or 'onnx'"):
        PruneSettings(runtime=runtime)


def test_a_missing_onnx_runtime_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> None:
        return None

    monkeypatch.setattr(file_formats, "find_spec", nothing)
    with pytest.raises(MissingDependencyError, match=r"taskprune\[onnx\]"):
        PruneSettings(runtime="onnx")


def test_onnx_runtime_is_measured_on_the_cpu() -> None:
    with pytest.raises(InputError, match="on the CPU"):
        runtimes.checked_runtime("onnx", torch.device("cuda"))


def test_a_model_that_cannot_be_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            raise RuntimeError("No working C++ compiler found")

    def broken(model: nn.Module, **_: Any) -> nn.Module:
        return Broken()

    monkeypatch.setattr(torch, "compile", broken)
    with (
        pytest.raises(ExportError, match=r"`Sequential` could not be compiled: No working C\+\+"),
        running("compiled", model := net()),
    ):
        in_runtime(model, (X,), call_inputs, "compiled")(X)


@pytest.fixture
def stepping(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> list[str]:
    """A runtime whose kernels take whole eights, beside operators that take what they say."""
    prepared: list[str] = []

    def per_entry(call: OperatorCall) -> int:
        specs = [v for v in call.arguments.values() if isinstance(v, TensorSpec)]
        return 1000 * sum(torch.Size(spec.shape).numel() for spec in specs)

    def timer(device: torch.device, **_: Any) -> CachedTimer:
        return CachedTimer(per_entry, str(device), folder=tmp_path)

    def prepare(model: nn.Module, example: Any, forward: Any, runtime: str) -> nn.Module:
        prepared.append(f"{runtime} {next(model.parameters()).shape[0]}")
        return model

    def in_eights(models: Mapping[str, nn.Module], _: Any, **__: Any) -> dict[str, LatencyReport]:
        def ms(model: nn.Module) -> float:
            convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
            return 1.0 + sum(-(-m.out_channels // 8) * m.in_channels for m in convs) / 10

        return {n: LatencyReport(t := ms(m), t, t, 5, {}) for n, m in models.items()}

    monkeypatch.setattr(latency, "device_timer", timer)
    monkeypatch.setattr(latency, "in_runtime", prepare)
    monkeypatch.setattr(latency, "measure_latency", in_eights)
    return prepared


def test_the_budget_holds_in_the_runtime_that_was_asked_for(stepping: list[str]) -> None:
    """Where its kernels step, which operators timed in PyTorch know nothing of."""
    result = taskprune.prune(
        net(),
        None,
        importance="magnitude",
        example_inputs=X,
        budget=Budget(latency_ms=0.8),
        settings=PruneSettings(runtime="onnx"),
    )
    comparison = result.report.latency
    assert comparison is not None
    (before, predicted), (whole, after) = comparison.predicted_ms, comparison.measured_ms
    assert after / whole <= 0.8 + 0.01
    assert predicted / before == pytest.approx(after / whole, abs=0.02)
    assert all(entry.startswith("onnx ") for entry in stepping)
    assert stepping.count("onnx 16") < len(stepping) / 2  # the original is prepared once


def test_plans_are_timed_until_prediction_and_measurement_agree(stepping: list[str]) -> None:
    model = net()
    groups = taskprune.couple(taskprune.trace(model, X))
    timer = ModelTimer((X,), runtime="onnx")
    scores = taskprune.score(model, groups, {}, (), importance="magnitude")
    solved: list[PruningPlan] = []

    def solve(cost: Any) -> PruningPlan:
        budget = Budget(latency_ms=0.8)
        solved.append(taskprune.solve(groups, scores, budget, costs={"latency_ns": cost}))
        return solved[-1]

    landed(latency.measured_cost(model, groups, timer), model, timer, solve)
    assert 1 < len(solved) <= latency.TIMED_PLANS + 1
