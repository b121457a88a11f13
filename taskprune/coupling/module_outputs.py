"""Where channels appear in what modules return."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from taskprune.coupling.axes import Axis, axis_size
from taskprune.coupling.context import Analysis, TensorState
from taskprune.coupling.forms import Classes
from taskprune.coupling.groups import IntArray
from taskprune.coupling.unit_table import MAX_FLAT, spread


@dataclass(frozen=True, eq=False, slots=True)
class Tap:
    """The channel dim of a module's output, and the unit of each of its positions."""

    module: str
    dim: int
    units: IntArray


def module_outputs(analysis: Analysis, classes: Classes) -> Iterator[Tap]:
    """Yield the channel dims of module outputs, once a module, in order of the forward.

    A module that runs several times is left out unless its outputs have the same channels.
    """
    taps: dict[str, Tap | None] = {}
    first_mode: dict[str, str] = {}
    for output in analysis.graph.module_outputs:
        if output.path:
            continue  # one of several tensors: a tap is all that its module returns
        if first_mode.setdefault(output.module, output.mode) != output.mode:
            continue
        tap = _tap(output.module, analysis.state(output.value), classes)
        known = taps.get(output.module, tap)
        same = known is not None and tap is not None and _agree(known, tap, classes)
        taps[output.module] = known if same else None
    yield from (tap for tap in taps.values() if tap is not None)


def _agree(a: Tap, b: Tap, classes: Classes) -> bool:
    return a.dim == b.dim and np.array_equal(classes.labels[a.units], classes.labels[b.units])


def _tap(module: str, state: TensorState, classes: Classes) -> Tap | None:
    rank = len(state.axes)
    # Channels come second in maps and last in tokens; the other place is for unusual layouts.
    candidates = (1, rank - 1) if rank > 3 else (rank - 1, 1)
    for dim in candidates:
        if 0 < dim < rank and axis_size(state.axes[dim]) <= MAX_FLAT:
            units = _live_units(state.axes[dim], classes)
            if units is not None:
                return Tap(module, dim, units)
    return None


def _live_units(axis: Axis, classes: Classes) -> IntArray | None:
    """Return the units that shrink an axis, spread over it, if one of its factors can."""
    live = [
        position
        for position, factor in enumerate(axis)
        if factor.units is not None and not classes.frozen[classes.labels[factor.units]].all()
    ]
    if len(live) != 1:
        return None
    units = axis[live[0]].units
    return None if units is None else spread(units, live[0], [factor.size for factor in axis])
