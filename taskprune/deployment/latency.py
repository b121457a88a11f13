"""Latency of a model on the device it is on: measured, and predicted for what it may become."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from taskprune.calling.forward import Forward
from taskprune.cost import LatencyCost, device_timer, measure_latency, measure_tables
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.rewrite import apply_plan

REPEATS = 15
"""Timed passes of each model."""


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """Milliseconds of one forward pass before and after pruning.

    Attributes:
        predicted_ms: Of the original, which the prediction was calibrated with, and of the result.
        measured_ms: Of both, running in turn.
    """

    predicted_ms: tuple[float, float]
    measured_ms: tuple[float, float]


def latency_cost(
    model: nn.Module,
    groups: CouplingGroups,
    example_inputs: Any,
    *,
    forward: Forward | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> LatencyCost:
    """Measure what ``Budget(latency_ms=...)`` needs: pass it on as ``costs={"latency_ns": ...}``.

    Times every operator of the forward pass at a few widths, the model itself, and the model with
    half of its channels, which tells what grows with the channels and what does not. All run in
    eval mode on the device that the model is on, with the present number of threads.

    Args:
        model: The model that was traced; it is left as it was.
        groups: Its coupling groups.
        example_inputs: The inputs it was traced on.
        forward: ``(model, inputs) -> outputs``.
        cache: Folder for the times of operators. Default: ``$TASKPRUNE_CACHE``, or else the
            platform's cache folder.
        progress: Called with what is being measured.

    Raises:
        InputError: Inputs are missing, or the model is on the meta device, on several devices or
            on one that cannot be timed.
    """
    if example_inputs is None:
        raise InputError(
            "A latency is that of a forward pass on inputs of a certain shape. Pass the inputs "
            "that the model was traced on."
        )
    say = progress or (lambda _: None)
    timer = device_timer(device_of(model, example_inputs), folder=cache)
    try:
        tables = measure_tables(
            groups, timer, lambda done, of: say(f"timing operators, {done} of {of}")
        )
    finally:
        timer.save()
    say("timing the model")
    halves = {
        g.name: np.arange(g.n_channels // (2 * g.step) * g.step, dtype=np.int64) for g in groups
    }
    half = build_plan(groups, halves)
    models = {"whole": model, "half": apply_plan(model, half)}
    found = measure_latency(models, example_inputs, forward=forward, repeats=REPEATS)
    whole_ns, half_ns = (round(found[name].median_ms * 1e6) for name in models)
    return LatencyCost(groups, tables).calibrated([(None, whole_ns), (half.kept, half_ns)])


def recalibrated(
    cost: LatencyCost,
    model: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    *,
    forward: Forward | None = None,
) -> LatencyCost:
    """Return `cost` calibrated with what a plan leads to as well.

    Solving again with it comes closer to the bound: layers that end up with odd widths, and those
    that a plan takes most from, need not be as fast as the calibration takes all to be on average.

    Args:
        cost: From :func:`latency_cost`.
        model: The model that it was measured on.
        plan: From a first ``solve``.
        example_inputs: As for :func:`latency_cost`.
        forward: As for :func:`latency_cost`.
    """
    models = {"whole": model, "pruned": apply_plan(model, plan)}
    found = measure_latency(models, example_inputs, forward=forward, repeats=REPEATS)
    whole_ns, pruned_ns = (round(found[name].median_ms * 1e6) for name in models)
    # The machine may be busier than before: earlier measurements count relative to the whole model.
    busier = whole_ns / cost.measured[0][1] if cost.measured else 1.0
    earlier = [(kept, round(ns * busier)) for kept, ns in cost.measured[1:]]
    return cost.calibrated([(None, whole_ns), *earlier, (plan.kept, pruned_ns)])


def compare_latency(
    model: nn.Module,
    smaller: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    *,
    forward: Forward | None = None,
) -> LatencyComparison:
    """Measure both models in turn, and put what `plan` predicts beside it."""
    models = {"before": model, "after": smaller}
    found = measure_latency(models, example_inputs, forward=forward, repeats=REPEATS)
    before, after = plan.costs["latency_ns"]
    return LatencyComparison(
        (before / 1e6, after / 1e6), (found["before"].median_ms, found["after"].median_ms)
    )


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
