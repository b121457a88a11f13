"""Latency of a model on the device it is on: measured, and predicted for what it may become."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from taskprune.calling.forward import Forward, call_inputs
from taskprune.cost import LatencyCost, device_timer, measure_latency, measure_tables
from taskprune.coupling.groups import CouplingGroups
from taskprune.deployment.runtimes import Runtime, checked_runtime, in_runtime, running
from taskprune.errors import InputError
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.rewrite import apply_plan

REPEATS = (11, 200)
"""Timed passes of each model, at least and at most."""

TIMED_PLANS = 4
"""How many choices of channels are timed at most until prediction and measurement agree."""

AGREED = 0.01
"""How far the measured share of the original's latency may be from the predicted one."""

TOTAL_MS = 1500.0
"""Short passes repeat until they take about this long: some milliseconds say nothing."""


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """Milliseconds of one forward pass before and after pruning.

    Attributes:
        predicted_ms: Of the original, which the prediction was calibrated with, and of the result.
        measured_ms: Of both, running in turn.
    """

    predicted_ms: tuple[float, float]
    measured_ms: tuple[float, float]


class ModelTimer:
    """Times models against each other, on one example and by what will run them.

    Args:
        example_inputs: What every model is called with.
        forward: ``(model, inputs) -> outputs``.
        runtime: What runs the models, see :data:`~taskprune.deployment.runtimes.Runtime`.

    Raises:
        InputError: There is no such runtime.
        MissingDependencyError: ONNX Runtime takes the extra ``onnx``.
    """

    def __init__(
        self, example_inputs: Any, forward: Forward | None = None, runtime: Runtime = "eager"
    ) -> None:
        self.example_inputs = example_inputs
        self.forward = forward or call_inputs
        self.runtime = checked_runtime(runtime)
        self._first: tuple[nn.Module, nn.Module] | None = None

    def __call__(self, models: Mapping[str, nn.Module]) -> dict[str, float]:
        """Return the median milliseconds of each model, all in turn.

        The first is usually the one that the others come from: it is compiled or translated once.
        """
        made: dict[str, nn.Module] = {}
        for name, model in models.items():
            if self._first is not None and self._first[0] is model:
                made[name] = self._first[1]
                continue
            made[name] = in_runtime(model, self.example_inputs, self.forward, self.runtime)
            self._first = self._first or (model, made[name])
        times = partial(measure_latency, made, self.example_inputs, forward=self.forward)
        with running(self.runtime, next(iter(models.values()))):
            slowest = max(r.median_ms for r in times(repeats=2, warmup=3).values())
            least, most = REPEATS
            repeats = round(min(most, max(least, TOTAL_MS / slowest)))
            found = times(repeats=repeats, warmup=0)
        return {name: report.median_ms for name, report in found.items()}


def latency_cost(
    model: nn.Module,
    groups: CouplingGroups,
    example_inputs: Any,
    *,
    forward: Forward | None = None,
    runtime: Runtime = "eager",
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> LatencyCost:
    """Measure what ``Budget(latency_ms=...)`` needs: pass it on as ``costs={"latency_ns": ...}``.

    Times every operator of the forward pass at a few widths, the model itself, and the model with
    half of its channels, which tells what grows with the channels and what does not. All run in
    eval mode on the device that the model is on, with the present number of threads. Operators are
    timed one by one in PyTorch, models by the runtime: how much faster a model gets is the
    runtime's word, which operators it is due to is PyTorch's.

    Args:
        model: The model that was traced; it is left as it was.
        groups: Its coupling groups.
        example_inputs: The inputs it was traced on.
        forward: ``(model, inputs) -> outputs``.
        runtime: What will run the model: ``"eager"``, ``"compiled"`` (``torch.compile``) or
            ``"onnx"`` (ONNX Runtime).
        cache: Folder for the times of operators. Default: ``$TASKPRUNE_CACHE``, or else the
            platform's cache folder.
        progress: Called with what is being measured.

    Raises:
        InputError: Inputs are missing, or the model is on the meta device, on several devices or
            on one that cannot be timed.
        MissingDependencyError: ONNX Runtime takes the extra ``onnx``.
        ExportError: The model cannot be compiled or translated.
    """
    if example_inputs is None:
        raise InputError(
            "A latency is that of a forward pass on inputs of a certain shape. Pass the inputs "
            "that the model was traced on."
        )
    checked_runtime(runtime, device_of(model, example_inputs))
    timer = ModelTimer(example_inputs, forward, runtime)
    return measured_cost(model, groups, timer, cache=cache, progress=progress)


def measured_cost(
    model: nn.Module,
    groups: CouplingGroups,
    timer: ModelTimer,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> LatencyCost:
    """Measure the same with a timer that goes on to be used."""
    say = progress or (lambda _: None)
    operators = device_timer(device_of(model, timer.example_inputs), folder=cache)
    try:
        tables = measure_tables(
            groups, operators, lambda done, of: say(f"timing operators, {done} of {of}")
        )
    finally:
        operators.save()
    say("timing the model")
    halves = {}
    for group in groups:
        n_gone = min(group.n_channels // 2, group.n_channels - group.fewest)
        halves[group.name] = np.arange(n_gone // group.step * group.step, dtype=np.int64)
    half = build_plan(groups, halves)
    found = timer({"whole": model, "half": apply_plan(model, half)})
    whole_ns, half_ns = (round(found[name] * 1e6) for name in ("whole", "half"))
    return LatencyCost(groups, tables).calibrated([(None, whole_ns), (half.kept, half_ns)])


def recalibrated(
    cost: LatencyCost, model: nn.Module, plan: PruningPlan, timer: ModelTimer
) -> LatencyCost:
    """Return `cost` calibrated with what a plan leads to as well.

    Solving again with it comes closer to the bound: layers that end up with odd widths, and those
    that a plan takes most from, need not be as fast as the calibration takes all to be on average.

    Args:
        cost: From :func:`latency_cost`.
        model: The model that it was measured on.
        plan: From a first ``solve``.
        timer: What measures.
    """
    found = timer({"whole": model, "pruned": apply_plan(model, plan)})
    whole_ns, pruned_ns = (round(found[name] * 1e6) for name in ("whole", "pruned"))
    # The machine may be busier than before: earlier measurements count relative to the whole model.
    busier = whole_ns / cost.measured[0][1] if cost.measured else 1.0
    earlier = [(kept, round(ns * busier)) for kept, ns in cost.measured[1:]]
    return cost.calibrated([(None, whole_ns), *earlier, (plan.kept, pruned_ns)])


def landed(
    cost: LatencyCost,
    model: nn.Module,
    timer: ModelTimer,
    solved: Callable[[LatencyCost], PruningPlan],
    progress: Callable[[str], None] | None = None,
) -> PruningPlan:
    """Return the plan for which what was predicted is what was measured.

    Every plan is timed, and the next one made with what that taught, until both agree.

    Args:
        cost: From :func:`latency_cost`.
        model: The model that it was measured on.
        timer: What measures.
        solved: Makes a plan by a cost.
        progress: Called with what is being measured.
    """
    say = progress or (lambda _: None)
    for number in range(TIMED_PLANS):
        plan = solved(cost)
        say(f"timing a choice of channels, {number + 1} of at most {TIMED_PLANS}")
        cost = recalibrated(cost, model, plan, timer)
        (_, whole_ns), *_, (_, pruned_ns) = cost.measured
        before, after = plan.costs["latency_ns"]
        if abs(pruned_ns / whole_ns - after / before) <= AGREED:
            return plan
    return solved(cost)


def compare_latency(
    model: nn.Module, smaller: nn.Module, plan: PruningPlan, timer: ModelTimer
) -> LatencyComparison:
    """Measure both models in turn, and put what `plan` predicts beside it."""
    found = timer({"before": model, "after": smaller})
    before, after = plan.costs["latency_ns"]
    return LatencyComparison((before / 1e6, after / 1e6), (found["before"], found["after"]))


def device_of(model: nn.Module, example_inputs: Any) -> torch.device:
    """Return the one device of a model and its inputs.

    Raises:
        InputError: There are several, or it is the meta device.
    """
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    inputs = [t for t in pytree.tree_leaves(example_inputs) if isinstance(t, Tensor)]
    for name, tensor in named.items():
        if tensor.is_meta:
            raise InputError(
                f"Nothing can be timed on the meta device, where `{name}` is. Load the model on "
                "the device that it will run on, or bound `params` or `macs` instead."
            )
    devices = {t.device for t in named.values()} or {t.device for t in inputs}
    if len(devices) != 1:
        raise InputError(
            "Latency is measured on one device. The model is on "
            f"{', '.join(sorted(map(str, devices))) or 'none'}: move it to one."
        )
    return devices.pop()
