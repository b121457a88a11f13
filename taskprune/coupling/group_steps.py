"""How many channels of a group must go together, so that every width is one that operators take."""

from __future__ import annotations

from math import gcd, lcm

import numpy as np

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
