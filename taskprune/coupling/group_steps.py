"""How many channels of a group must go together, and stay, so that operators take every width."""

from __future__ import annotations

from math import gcd, lcm

import numpy as np
from torch import nn

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
        live = [
            factor
            for factor in axis
            if factor.units is not None and not classes.frozen[classes.labels[factor.units]].all()
        ]
        for factor in live:
            labels, counts = np.unique(classes.labels[factor.units], return_counts=True)
            # A channel that goes takes so many entries of this factor, times what never changes.
            others = 1 if len(live) > 1 else int(np.prod([f.size for f in axis if f is not factor]))
            for group, count in zip(of_class[labels].tolist(), counts.tolist(), strict=True):
                if group >= 0:
                    steps[group] = lcm(steps[group], multiple // gcd(multiple, count * others))
    return steps


def fewest_channels(
    analysis: Analysis, classes: Classes, of_class: IntArray, n_groups: int
) -> list[int]:
    """Return how many channels of each group must stay.

    Whether an LSTM projects its state, torch tells by the state being narrower than the cells, so
    there must be more of these. Where several groups make up the cells, each keeps to it alone.
    """
    graph, fewest = analysis.graph, [1] * n_groups
    for name, number in graph.parameters.items():
        module, _, own = name.rpartition(".")
        kind = graph.modules.get(module, nn.Module)
        if not (issubclass(kind, nn.LSTM) and own.startswith("weight_hr_l")):
            continue
        n_projected, cells = graph.values[number].shape[0], analysis.state(number).axes[1]
        labels = [classes.labels[f.units] for f in cells if f.units is not None]
        of_cell = of_class[np.concatenate(labels)] if labels else np.empty(0, dtype=np.int64)
        n_frozen = int((of_cell < 0).sum())
        for group in np.unique(of_cell[of_cell >= 0]).tolist():
            n_own = int((of_cell == group).sum())
            fewest[group] = max(fewest[group], min(n_own, n_projected + 1 - n_frozen))
    return fewest
