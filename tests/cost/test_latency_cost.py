"""Predicted latency: the operators of the pruned model, looked up and interpolated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from latency_nets import INPUTS, NETS, multiply_adds
from torch import Tensor, nn

from taskprune.cost import (
    CachedTimer,
    DeviceTimer,
    LatencyCost,
    OperatorCall,
    device_timer,
    measure_tables,
)
from taskprune.coupling import CouplingGroups, couple
from taskprune.errors import InputError
from taskprune.graph import trace
from taskprune.importance import Evidence, importance_by_name, score
from taskprune.plan.plan import build_plan
from taskprune.rewrite import apply_plan
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.testing import random_drop


def made(name: str) -> tuple[nn.Module, CouplingGroups]:
    torch.manual_seed(0)
    model = NETS[name]().eval()
    return model, couple(trace(model, INPUTS))


def calls(groups: CouplingGroups, kept: dict[str, int]) -> list[str]:
    return [OperatorCall.of(s, kept).key for s in groups.sites if s.operator != "output"]


@pytest.mark.parametrize("name", NETS)
def test_calls_at_kept_counts_are_those_of_the_pruned_model(name: str) -> None:
    model, groups = made(name)
    for seed, ratio in enumerate((0.0, 0.4, 0.8)):
        plan = build_plan(groups, random_drop(groups, ratio, seed=seed))
        smaller = couple(trace(apply_plan(model, plan), INPUTS))
        assert calls(groups, plan.kept) == calls(smaller, smaller.full_counts())


@pytest.mark.parametrize("name", NETS)
def test_every_call_can_be_run_by_itself(name: str) -> None:
    _, groups = made(name)
    plan = build_plan(groups, random_drop(groups, 0.5, seed=1))
    for site in groups.sites[:-1]:
        function, arguments = OperatorCall.of(site, plan.kept).made(torch.device("cpu"))
        result = function(**arguments)
        first = result[0] if isinstance(result, tuple) else result
        assert site.outputs[0] is not None
        assert tuple(first.shape) == site.outputs[0].sizes(plan.kept)


def test_what_is_bilinear_in_the_widths_is_predicted_exactly() -> None:
    _, groups = made("chain")
    cost = LatencyCost(groups, measure_tables(groups, multiply_adds))
    for seed in range(5):
        kept = build_plan(groups, random_drop(groups, 0.6, seed=seed)).kept
        real = sum(multiply_adds(OperatorCall.of(s, kept)) for s in groups.sites[:-1])
        assert cost.value(kept) == real


def test_noise_never_makes_fewer_channels_dearer() -> None:
    _, groups = made("chain")
    rng = np.random.default_rng(0)

    def noisy(call: OperatorCall) -> int:
        return int(multiply_adds(call) * rng.uniform(0.5, 1.5))

    cost = LatencyCost(groups, measure_tables(groups, noisy))
    for group, n_channels in enumerate(cost.full.tolist()):
        values = []
        for n_kept in range(1, n_channels + 1):
            counts = cost.full.copy()
            counts[group] = n_kept
            values.append(cost.value(counts))
        assert values == sorted(values)


def test_calibration_agrees_with_what_was_measured() -> None:
    _, groups = made("merged")
    plain = LatencyCost(groups, measure_tables(groups, multiply_adds))
    half = build_plan(groups, random_drop(groups, 0.5, seed=0)).kept
    assert plain.calibrated([(None, 5_000_000)]).value() == 5_000_000
    whole, less = 3 * plain.value() + 1000, 3 * plain.value(half) + 1000
    both = plain.calibrated([(None, whole), (half, less)])
    assert both.value() == whole
    assert both.value(half) == pytest.approx(less, abs=len(groups.sites))
    with pytest.raises(InputError, match="whole model first"):
        plain.calibrated([(half, less)])
    # A third that lies on the same line changes nothing.
    most = build_plan(groups, random_drop(groups, 0.8, seed=0)).kept
    three = plain.calibrated([(None, whole), (half, less), (most, 3 * plain.value(most) + 1000)])
    assert three.scale == pytest.approx(3)
    # A negative offset makes no sense: the first measurement decides.
    alone = plain.calibrated([(None, 1000), (half, 1)])
    assert alone.value() == 1000
    assert alone.offset == pytest.approx(0, abs=len(groups.sites))


@pytest.mark.parametrize("fraction", [0.8, 0.5])
def test_a_bound_on_latency_is_met_and_not_by_much(fraction: float) -> None:
    model, groups = made("chain")
    cost = LatencyCost(groups, measure_tables(groups, multiply_adds))
    scores = score(model, groups, {}, (), importance=importance_by_name("magnitude"))
    plan = solve(groups, scores, Budget(latency_ms=fraction), costs={"latency_ns": cost})
    before, after = plan.costs["latency_ns"]
    assert after == cost.value(plan.kept)
    assert (fraction - 0.1) * before <= after <= fraction * before


def test_groups_that_buy_no_time_keep_their_channels_under_a_latency_budget() -> None:
    """However little they are worth to the tasks, and whatever the clock's noise says of them."""
    model, groups = made("chain")
    rng = np.random.default_rng(0)

    def launch_bound(call: OperatorCall) -> int:
        is_tail = call.operator in ("aten.addmm.default", "aten.gelu.default")
        return int(50_000 * rng.uniform(0.97, 1.03)) if is_tail else multiply_adds(call)

    cost = LatencyCost(groups, measure_tables(groups, launch_bound))
    assert cost.flat == ("5",)

    def worthless_tail(_: nn.Module, found: CouplingGroups, __: Evidence) -> dict[str, Tensor]:
        worth = {"5": 1e-6}
        return {g.name: torch.full((g.n_channels,), worth.get(g.name, 1.0)) for g in found}

    scores = score(model, groups, {}, (), importance=worthless_tail)
    plan = solve(groups, scores, Budget(latency_ms=0.8), costs={"latency_ns": cost})
    assert plan.kept["5"] == 8
    assert "held by `saves no time`" in str(plan.explain("5"))
    assert plan.kept["0"] < 16
    smaller = solve(groups, scores, Budget(params=0.9), costs={"latency_ns": cost})
    assert smaller.kept["5"] < 8  # of what they do buy


def test_the_last_measurement_is_met_where_a_budget_landed() -> None:
    """Half of everything says little of what a budget takes from single layers."""
    _, groups = made("merged")
    plain = LatencyCost(groups, measure_tables(groups, multiply_adds))
    half, little = (
        build_plan(groups, random_drop(groups, ratio, seed=0)).kept for ratio in (0.5, 0.1)
    )
    whole = 2 * plain.value()
    measured = [(None, whole), (half, whole // 2), (little, round(0.97 * whole))]
    cost = plain.calibrated(measured)
    assert cost.value() == whole
    assert cost.value(little) == pytest.approx(0.97 * whole, rel=1e-3)
    # More than nothing is left of the smallest model, or the line is another.
    steep = plain.calibrated([(None, whole), (half, whole // 2), (little, whole // 10)])
    assert 0 < steep.value(np.zeros_like(steep.full)) < steep.value(half)


def test_an_unmeasured_latency_is_refused() -> None:
    model, groups = made("chain")
    scores = score(model, groups, {}, (), importance=importance_by_name("magnitude"))
    with pytest.raises(InputError, match=r"latency_ns.*measured first"):
        solve(groups, scores, Budget(latency_ms=0.5))


def test_groups_without_a_trace_have_no_latency() -> None:
    with pytest.raises(InputError, match="example_inputs"):
        measure_tables(CouplingGroups((), (), {}, frozenset()), multiply_adds)


def test_times_are_kept_on_disk_and_merged(tmp_path: Path) -> None:
    _, groups = made("merged")
    asked: list[str] = []

    def timer(call: OperatorCall) -> int | None:
        asked.append(call.key)
        return None if call.operator == "aten.cat.default" else multiply_adds(call)

    first = CachedTimer(timer, "A device (TM) 2 threads", folder=tmp_path)
    tables = measure_tables(groups, first)
    assert len(asked) == len(set(asked)) > 0
    elsewhere = CachedTimer(lambda _: 7, "A device (TM) 2 threads", folder=tmp_path)
    elsewhere(OperatorCall("from.else.where", {}))
    elsewhere.save()
    first.save()
    known = len(asked)
    second = CachedTimer(timer, "A device (TM) 2 threads", folder=tmp_path)
    again = measure_tables(groups, second)
    assert len(asked) == known
    for a, b in zip(tables, again, strict=True):
        np.testing.assert_array_equal(a.times, b.times)
    assert second.times["from.else.where()"] == 7
    assert CachedTimer(timer, "another", folder=tmp_path).path != second.path


def test_the_folder_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKPRUNE_CACHE", str(tmp_path / "times"))
    timer = device_timer("cpu")
    assert timer.path.parent == tmp_path / "times"
    assert torch.__version__.split("+")[0] in timer.path.name


@pytest.mark.parametrize("content", ["[1, 2", '{"a": Infinity}', '{"a": NaN}', "[]"])
def test_a_broken_file_is_named(content: str, tmp_path: Path) -> None:
    path = CachedTimer(multiply_adds, "x", folder=tmp_path).path
    path.write_text(content)
    with pytest.raises(InputError, match="delete it"):
        CachedTimer(multiply_adds, "x", folder=tmp_path)


def test_times_that_cannot_be_kept_are_used_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody wants minutes of work to end in an error about a cache."""
    (tmp_path / "file").write_text("in the way of a folder")
    _, groups = made("chain")
    timer = CachedTimer(multiply_adds, "x", folder=tmp_path / "file" / "times")
    measure_tables(groups, timer)
    timer.save()
    assert str(tmp_path / "file" / "times") in caplog.text
    assert "TASKPRUNE_CACHE" in caplog.text


def test_a_file_that_breaks_meanwhile_is_left_to_the_next_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, groups = made("chain")
    timer = CachedTimer(multiply_adds, "x", folder=tmp_path)
    measure_tables(groups, timer)
    timer.path.write_text("{")
    timer.save()
    assert "delete it" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [timer.path.name]


def test_a_file_that_cannot_be_read_is_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    timer = CachedTimer(multiply_adds, "x", folder=tmp_path)
    timer.path.mkdir()
    assert CachedTimer(multiply_adds, "x", folder=tmp_path).times == {}
    assert str(timer.path) in caplog.text


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_devices_that_cannot_be_timed_are_refused(device: str) -> None:
    with pytest.raises(InputError, match="CPU and on CUDA"):
        DeviceTimer(device)


def test_timing_leaves_no_trace_and_reports_what_cannot_run() -> None:
    _, groups = made("chain")
    site = groups.sites[0]
    full = groups.full_counts()
    state = torch.get_rng_state()
    call = OperatorCall.of(site, full)
    assert (DeviceTimer("cpu")(call) or 0) > 0
    assert DeviceTimer("cpu")(OperatorCall(call.operator, {"input": 3})) is None
    assert torch.equal(state, torch.get_rng_state())
    assert float(torch.tensor([1e-39]) * 1.0) != 0.0
