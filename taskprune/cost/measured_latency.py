"""How long models take, measured so that they can be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from taskprune.calling.forward import Forward, call_inputs
from taskprune.errors import InputError
from taskprune.restore.borrow import attributes_given_back, buffers_given_back
from taskprune.restore.caches import caches_given_back
from taskprune.restore.lending import lent
from taskprune.restore.modes import evaluating
from taskprune.restore.process import flushed_denormals, preserved_rng


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """Wall-clock time of one forward pass of one model, in milliseconds.

    Attributes:
        median_ms: Median over all repeats.
        lower_ms: First quartile.
        upper_ms: Third quartile.
        repeats: How many passes were timed.
        ratio: ``{other model: this median / its median}``; below 1 this model is the faster.
    """

    median_ms: float
    lower_ms: float
    upper_ms: float
    repeats: int
    ratio: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.median_ms:.2f} ms ({self.lower_ms:.2f} to {self.upper_ms:.2f})"


def measure_latency(
    models: Mapping[str, nn.Module],
    inputs: Any,
    *,
    forward: Forward | None = None,
    repeats: int = 30,
    warmup: int = 5,
) -> dict[str, LatencyReport]:
    """Time the forward passes of several models against each other.

    The models take turns, so that whatever slows the machine down slows all of them. They run in
    eval mode without gradients. Denormal numbers count as zero meanwhile: random and freshly pruned
    networks make many, and a processor takes up to a hundred times longer for each.

    Args:
        models: The models by name, all on the device of ``inputs``.
        inputs: What every one of them is called with.
        forward: ``(model, inputs) -> outputs``.
        repeats: Timed passes of each model; at least 2.
        warmup: Passes of each model before that.

    Raises:
        InputError: No models, or fewer than two repeats.
    """
    if not models or repeats < 2 or warmup < 0:
        raise InputError(
            "Expected at least one model, `repeats` of at least 2, `warmup` of at least 0. Found "
            f"{len(models)} models, repeats={repeats}, warmup={warmup}."
        )
    call = forward or call_inputs
    times: dict[str, list[float]] = {name: [] for name in models}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(attributes_given_back(model))
            stack.enter_context(buffers_given_back(model))
            stack.enter_context(evaluating(model))
            stack.enter_context(caches_given_back(model, call))
        stack.enter_context(preserved_rng())
        stack.enter_context(lent(inputs))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(flushed_denormals())
        for turn in range(warmup + repeats):
            for name, model in models.items():
                milliseconds = _time(model, inputs, call)
                if turn >= warmup:
                    times[name].append(milliseconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {name: _report(name, values, medians) for name, values in times.items()}


def _time(model: nn.Module, inputs: Any, call: Forward) -> float:
    on_gpu = _on_gpu(model, inputs)
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call(model, inputs)
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def _on_gpu(model: nn.Module, inputs: Any) -> bool:
    tensors = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
    return any(t.is_cuda for t in (*model.parameters(), *tensors))


def _report(name: str, values: list[float], medians: Mapping[str, float]) -> LatencyReport:
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    ratio = {other: medians[name] / value for other, value in medians.items() if other != name}
    return LatencyReport(medians[name], lower, upper, len(values), ratio)
