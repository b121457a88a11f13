"""Budgets of latency at the front door; the clock only calculates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from front_nets import Plain, images, two_task_net
from torch import nn

import taskprune
from taskprune import Budget, PruneSettings
from taskprune.cost import CachedTimer, LatencyReport, OperatorCall, measure_macs
from taskprune.cost.operator_call import TensorSpec
from taskprune.errors import InfeasibleBudgetError, InputError


def per_entry(call: OperatorCall) -> int:
    specs = [v for v in call.arguments.values() if isinstance(v, TensorSpec)]
    return 1000 * sum(torch.Size(spec.shape).numel() for spec in specs)


def by_macs(models: Mapping[str, nn.Module], inputs: Any, **_: Any) -> dict[str, LatencyReport]:
    times = {name: 2.0 + measure_macs(m, inputs) / 1e5 for name, m in models.items()}
    return {name: LatencyReport(ms, ms, ms, 5, {}) for name, ms in times.items()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    def timer(device: torch.device, *, folder: Any = None) -> CachedTimer:
        assert device == torch.device("cpu")
        return CachedTimer(per_entry, str(device), folder=folder or tmp_path)

    monkeypatch.setattr("taskprune.deployment.latency.device_timer", timer)
    monkeypatch.setattr("taskprune.deployment.latency.measure_latency", by_macs)
    return tmp_path


def test_latency_is_bounded_and_reported_before_and_after(clock: Path) -> None:
    net = Plain()
    result = taskprune.prune(
        net,
        None,
        importance="magnitude",
        example_inputs=images(2),
        budget=Budget(latency_ms=0.7),
    )
    before, after = result.plan.costs["latency_ns"]
    assert before == round(by_macs({"net": net}, images(2))["net"].median_ms * 1e6)
    assert 0.65 * before <= after <= 0.7 * before
    latency = result.report.latency
    assert latency is not None
    assert latency.predicted_ms == (before / 1e6, after / 1e6)
    assert latency.measured_ms[1] < latency.measured_ms[0]
    text = str(result)
    assert "latency, predicted" in text
    assert "latency, measured" in text
    assert json.loads(result.report.to_json())["latency"]["measured_ms"]
    assert list(clock.glob("*.json"))


def test_latency_is_bounded_and_reported_in_several_steps(clock: Path) -> None:
    net = Plain()
    result = taskprune.prune(
        net,
        None,
        importance="magnitude",
        example_inputs=images(2),
        budget=Budget(latency_ms=0.7),
        settings=PruneSettings(steps=3),
    )
    before, after = result.plan.costs["latency_ns"]
    assert before == round(by_macs({"net": net}, images(2))["net"].median_ms * 1e6)
    assert after <= 0.7 * before
    assert [line.costs["latency_ns"] <= before for line in result.report.steps] == [True] * 3
    latency = result.report.latency
    assert latency is not None
    assert latency.predicted_ms == (before / 1e6, after / 1e6)
    assert latency.measured_ms[1] < latency.measured_ms[0]


def test_latency_joins_other_bounds(clock: Path) -> None:
    model = two_task_net()
    budget = Budget(params=0.8, latency_ms=0.8, activation_memory=0.9)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    result = taskprune.prune(
        model, None, importance="magnitude", example_inputs=images(2), budget=budget
    )
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    left = {name: b / a for name, (a, b) in result.plan.costs.items()}
    assert left["params"] <= 0.8
    assert left["latency_ns"] <= 0.8
    assert left["activation_memory"] <= 0.9


def test_an_absolute_bound_is_in_milliseconds(clock: Path) -> None:
    arguments: dict[str, Any] = {"importance": "magnitude", "example_inputs": images(2)}
    result = taskprune.prune(Plain(), None, budget=Budget(latency_ms=5.5), **arguments)
    before, after = result.plan.costs["latency_ns"]
    assert before > 5_500_000 >= after
    with pytest.raises(InfeasibleBudgetError, match=r"At most 1.25 ms .* cannot be met"):
        taskprune.prune(Plain(), None, budget=Budget(latency_ms=1.25), **arguments)


def test_a_model_on_the_meta_device_cannot_be_timed() -> None:
    with torch.device("meta"):
        net = Plain()
    with pytest.raises(InputError, match="meta device"):
        taskprune.prune(
            net, None, importance="random", example_inputs=images(2), budget=Budget(latency_ms=0.5)
        )


def test_missing_inputs_are_refused() -> None:
    net = Plain()
    groups = taskprune.couple(taskprune.trace(net, images(2)))
    with pytest.raises(InputError, match="inputs"):
        taskprune.latency_cost(net, groups, None)
