"""Weights of tasks that were tried so that none pays for another, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from taskprune.terminal import text_table


@dataclass(frozen=True, slots=True)
class TriedWeights:
    """What a step led to where the tasks had these weights.

    Attributes:
        step: Its number, from 1.
        weights: By task, where the user's own are 1.
        metrics: Measured on the validation data, by task.
        kept: Whether the step was made with these.
    """

    step: int
    weights: Mapping[str, float]
    metrics: Mapping[str, float]
    kept: bool


def weights_kept(tried: Sequence[TriedWeights]) -> dict[str, float]:
    """Return the weights of the last step that were kept, of tasks that count more than before."""
    kept = [each.weights for each in tried if each.kept]
    return {task: weight for task, weight in kept[-1].items() if weight != 1} if kept else {}


def balance_table(tried: Sequence[TriedWeights]) -> Table:
    """The weights that were tried, and how well each task did with them."""
    tasks = tuple(tried[0].weights)
    rows = (
        (
            str(each.step),
            *(f"{each.weights[task]:.3g}" for task in tasks),
            *(f"{value:.4g}" for value in each.metrics.values()),
            "kept" if each.kept else "",
        )
        for each in tried
    )
    headings = ("step", *(f"weight of {task}" for task in tasks), *tried[0].metrics, "")
    return text_table("Tasks weighed by what they lost", headings, rows, words=("",))
