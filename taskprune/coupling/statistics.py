"""Which groups the code computes statistics of: of what passes through, and of weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from taskprune.coupling.context import Analysis
from taskprune.coupling.forms import Classes
from taskprune.coupling.groups import IntArray, WeightStatistic


def crossings(analysis: Analysis, classes: Classes, of_class: IntArray) -> dict[int, list[str]]:
    """Return descriptions of the statistics across the channels of each group, by its number."""
    found: dict[int, dict[str, None]] = {}
    for units, text in analysis.units.crossings:
        for number in np.unique(of_class[classes.labels[units]]):
            found.setdefault(int(number), {})[text] = None
    return {number: list(texts) for number, texts in found.items()}


def weight_statistics(
    analysis: Analysis, classes: Classes, of_class: IntArray
) -> dict[int, list[WeightStatistic]]:
    """Return where weights are summed up along the channels of each group, by its number.

    Only channels that parameters read from something else: the rank of a weight that is itself a
    product is summed up too, but what goes there is meant to go.
    """
    table = analysis.units
    is_read = np.zeros(len(classes.frozen), np.bool_)
    for units in table.read:
        is_read[classes.labels[units]] = True
    found: dict[int, dict[WeightStatistic, None]] = {}
    for units, text in table.weighed:
        labels = classes.labels[units]
        for number in np.unique(of_class[labels[is_read[labels]]]):
            statistics = (WeightStatistic(n, d, text) for n, d in _places(analysis, units))
            found.setdefault(int(number), {}).update(dict.fromkeys(statistics))
    return {number: list(statistics) for number, statistics in found.items()}


def _places(analysis: Analysis, units: IntArray) -> Iterator[tuple[str, int]]:
    """Yield the dims of parameters and buffers that units are entries of."""
    columns = analysis.units.columns
    starts = np.array([column.start for column in columns], np.int64)
    for position in np.unique(np.searchsorted(starts, units, side="right") - 1):
        column = columns[int(position)] if position >= 0 else None
        if column and (units < column.start + column.size)[units >= column.start].any():
            yield column.name, column.dim
