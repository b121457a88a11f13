"""Which groups the code computes statistics of: of what passes through, and of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from taskprune.coupling.axes import tracked_units
from taskprune.coupling.context import Analysis, TensorState
from taskprune.coupling.forms import Classes
from taskprune.coupling.groups import IntArray, WeightStatistic
from taskprune.coupling.sites import only_views


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


def contracted(analysis: Analysis, classes: Classes, of_class: IntArray) -> frozenset[int]:
    """Return the numbers of the groups that something else than a parameter adds up.

    Their channels go into an operator and do not come out of it, without a weight among its
    arguments that reads them; or two activations are multiplied and summed over them.
    """
    known: dict[int, frozenset[int]] = {}

    def among(units: IntArray) -> frozenset[int]:
        # The analysis keeps the arrays, so that no two have the same number.
        if id(units) not in known:
            numbers = np.unique(of_class[classes.labels[units]])
            known[id(units)] = frozenset(numbers[numbers >= 0].tolist())
        return known[id(units)]

    def inside(states: Iterable[TensorState]) -> set[int]:
        axes = (axis for state in states for axis in state.axes)
        return {n for axis in axes for units in tracked_units(axis) for n in among(units)}

    found = {number for units in analysis.units.contracted for number in among(units)}
    for operation in analysis.graph.operations:
        if only_views(operation.target):
            continue
        arguments = [analysis.state(n) for n in operation.operands]
        outputs = [analysis.state(n) for n in operation.outputs if n is not None]
        read = [state for state in arguments if state.weight]
        found |= inside(s for s in arguments if not s.weight) - inside([*read, *outputs])
    return frozenset(found)


def _places(analysis: Analysis, units: IntArray) -> Iterator[tuple[str, int]]:
    """Yield the dims of parameters and buffers that units are entries of."""
    columns = analysis.units.columns
    starts = np.array([column.start for column in columns], np.int64)
    for position in np.unique(np.searchsorted(starts, units, side="right") - 1):
        column = columns[int(position)] if position >= 0 else None
        if column and (units < column.start + column.size)[units >= column.start].any():
            yield column.name, column.dim
