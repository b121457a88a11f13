"""Measure a driving net on labelled images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from taskprune import Metric
from taskprune.driving.batch import DrivingBatch
from taskprune.driving.metrics import DetectionMetric, DrivableMetric, LaneMetric
from taskprune.files import write_text
from taskprune.restore import evaluating, flushed_denormals


class SummaryMetric(Metric, Protocol):
    """A metric with several figures."""

    def summary(self) -> Mapping[str, float]:
        """Return every figure by name, each in 0..1."""


@torch.no_grad()
def measure(
    model: nn.Module,
    batches: Iterable[Any],
    metrics: Mapping[str, SummaryMetric],
    *,
    forward: Callable[[nn.Module, Any], Any],
) -> dict[str, dict[str, float]]:
    """Run the model in eval mode over all batches and return every figure of each metric.

    The mode of each submodule is given back, also after an error.

    Args:
        model: Any net.
        batches: With ``to(device)``.
        metrics: Fresh ones, by task.
        forward: ``(model, batch) -> outputs``.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        for batch in batches:
            moved = batch.to(device)
            outputs = forward(model, moved)
            for metric in metrics.values():
                metric.update(outputs, moved)
    return {task: dict(metric.summary()) for task, metric in metrics.items()}


def evaluate(model: nn.Module, loader: Iterable[DrivingBatch]) -> dict[str, dict[str, float]]:
    """Run a three-task driving net over all batches and return every metric of each task.

    Args:
        model: Driving net, ``model(images)`` gives the three outputs.
        loader: Batches; tasks without labels in all of them come out as NaN.

    Returns:
        ``{"detection": {"map50", ...}, "drivable": {"miou", ...}, "lane": {"iou", ...}}``, each
        in 0..1.

    Raises:
        MissingDependencyError: The extra ``driving`` is not installed.
    """
    metrics: dict[str, SummaryMetric] = {
        "detection": DetectionMetric(),
        "drivable": DrivableMetric(),
        "lane": LaneMetric(),
    }
    return measure(model, loader, metrics, forward=lambda net, batch: net(batch.images))


def metrics_table(metrics: Mapping[str, Mapping[str, float]], *, title: str) -> Table:
    """Return a table with a row a task and its metrics in points."""
    table = Table(title=title, title_justify="left", show_header=False)
    for task, values in metrics.items():
        cells = "  ".join(f"{name} {100 * value:.1f}" for name, value in values.items())
        table.add_row(task, cells)
    return table


def report(
    measured: Callable[[], Mapping[str, Mapping[str, float]]], *, title: str, out: Path | None
) -> None:
    """Measure, show the metrics in a terminal and write them to a JSON file, if there is to be one.

    Args:
        measured: Returns every metric of each task.
        title: Of the table.
        out: The file; its folder exists.
    """
    with flushed_denormals():
        metrics = measured()
    Console().print(metrics_table(metrics, title=title))
    if out is not None:
        write_text(out, json.dumps(metrics, indent=2))
