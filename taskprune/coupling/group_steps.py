"""How many channels of a group must go together, and stay, so that operators take every width."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch import nn

from taskprune.coupling.axes import Axis, Factor
from taskprune.coupling.context import Analysis
from taskprune.coupling.forms import Classes
from taskprune.coupling.groups import IntArray


def group_steps(
    analysis: Analysis, classes: Classes, of_class: IntArray, n_groups: int
) -> list[int]:
    """Return the step of each group.

    The widths of the model at hand are taken, so those are after any number of steps. Where the
    channels of several groups make up one width, each group keeps to it alone.
    """
    steps = [1] * n_groups
    for axis, multiple in analysis.units.aligned:
        live = _live(axis, classes)
        for factor in live:
            labels, counts = np.unique(classes.labels[factor.units], return_counts=True)
            # A channel that goes takes so many entries of this factor, times what never changes.
            others = 1 if len(live) > 1 else int(np.prod([f.size for f in axis if f is not factor]))
            for group, count in zip(of_class[labels].tolist(), counts.tolist(), strict=True):
                if group >= 0:
                    steps[group] = math.lcm(
                        steps[group], multiple // math.gcd(multiple, count * others)
                    )
    return steps


def fewest_channels(
    analysis: Analysis, classes: Classes, of_class: IntArray, n_groups: int
) -> list[int]:
    """Return how many channels of each group must stay.

    Of several groups that make up one length, each may count on one channel of every other.
    """
    fewest = [1] * n_groups
    for axis, shortest in (*analysis.units.shortest, *_cells(analysis)):
        factors = _live(axis, classes)
        constant = math.prod(factor.size for factor in axis if factor not in factors)
        for factor in factors:
            labels, counts = np.unique(classes.labels[factor.units], return_counts=True)
            groups = of_class[labels]
            stays = int(counts[groups < 0].sum())
            shares = np.unique(groups[groups >= 0]).tolist()
            wanted = math.ceil(shortest / constant) - stays - (len(shares) - 1)
            for group in shares:
                own = counts[groups == group]
                fewest[group] = max(fewest[group], min(own.size, math.ceil(wanted / own.min())))
    return fewest


def _live(axis: Axis, classes: Classes) -> list[Factor]:
    """Return the factors of an axis that can shrink."""
    return [
        factor
        for factor in axis
        if factor.units is not None and not classes.frozen[classes.labels[factor.units]].all()
    ]


def _cells(analysis: Analysis) -> Iterator[tuple[Axis, int]]:
    """Yield the cells of LSTMs that project their state, and how many there must be.

    Torch tells that they do by the state being narrower than the cells.
    """
    graph = analysis.graph
    for name, number in graph.parameters.items():
        module, _, own = name.rpartition(".")
        kind = graph.modules.get(module, nn.Module)
        if issubclass(kind, nn.LSTM) and own.startswith("weight_hr_l"):
            yield analysis.state(number).axes[1], graph.values[number].shape[0] + 1
