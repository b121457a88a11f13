r"""Latency as a function of how many channels each group keeps, from measured operators.

Each operator call is timed at a few widths of what it reads and of what it makes, and interpolated
linearly in both between them. The sum over a forward pass, times a scale and plus an offset, is the
prediction,

.. math:: V(k) = f\Big(\sum_t T_t(x_t(k), y_t(k))\Big),

where :math:`f` rises in straight lines through measurements of whole models: what runs between
operators takes time as well, operators in a row find other things in the caches than one repeated
does, and another runtime has kernels of its own. The formulation is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from taskprune.cost.operator_call import OperatorCall
from taskprune.cost.operator_timer import OperatorTimer
from taskprune.coupling.groups import CouplingGroups, IntArray, LinearForm, OperatorSite
from taskprune.errors import InputError

FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Widths at which operators are timed, as fractions of the full ones."""

BLOCK = 8
"""Kernels work on blocks of so many channels, and times step there: widths are timed at multiples
where there are any, so that what lies between two of them is not taken for what lies at one."""

FLAT = 0.1
"""Groups that save less than this part of what they would, if times went with sizes, buy nothing.

That little is the noise of the clock, or what a launch takes whatever it works on.
"""

FloatArray: TypeAlias = NDArray[np.float64]
Measured: TypeAlias = tuple[Mapping[str, int] | None, int]
"""Kept counts, or ``None`` for all channels, and nanoseconds."""


@dataclass(frozen=True, slots=True)
class SiteTable:
    """Times of one operator call.

    Attributes:
        sizes: The two lengths that they depend on.
        grid: Values of each of them, ascending. Shape ``[2, n_fractions]``.
        times: Nanoseconds. Shape ``[n_fractions, n_fractions]``.
    """

    sizes: tuple[LinearForm, LinearForm]
    grid: FloatArray
    times: FloatArray


def measure_tables(
    groups: CouplingGroups,
    timer: OperatorTimer,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SiteTable, ...]:
    """Time all operators of a forward pass at several widths.

    Args:
        groups: The model's coupling groups.
        timer: Says how long an operator takes.
        progress: Called with the number of calls looked up so far, and of all.

    Raises:
        InputError: The groups come without operator calls.
    """
    sites = [site for site in groups.sites if site.operator != "output"]
    if not sites:
        raise InputError(
            "Latency is predicted from the operators of a traced forward pass. These groups have "
            "none: get them from `couple(trace(model, example_inputs))`."
        )
    tables = []
    for number, site in enumerate(sites):
        tables.append(_table(groups, site, timer))
        if progress is not None:
            progress(number + 1, len(sites))
    return tuple(tables)


class LatencyCost:
    """Predicted nanoseconds of one forward pass on the traced inputs; a ``Cost``.

    A table is flat where an operator takes no less time with fewer channels, and steep elsewhere.
    So that nothing stops at a step, :meth:`marginals` is the larger of what one more channel saves
    and of the mean saving per channel down to the smallest width that was measured; values
    are exactly those of the tables. Groups that buy nothing (:data:`FLAT`) count as whole whatever
    they keep, so that no bound on the latency takes a channel of theirs for the noise of a clock.

    Args:
        groups: The model's coupling groups.
        tables: From :func:`measure_tables`.
        curve: Sums of operators and what a whole model takes, both ascending, in nanoseconds; the
            first sum is 0, the last that of the whole model. Default: the sum itself.

    Attributes:
        offset: Nanoseconds that are spent whatever is kept.
        scale: What each nanosecond of an operator counts on average.
        measured: What it was calibrated with.
        flat: Names of the groups whose channels buy no time.
    """

    def __init__(
        self,
        groups: CouplingGroups,
        tables: tuple[SiteTable, ...],
        *,
        curve: Sequence[tuple[float, float]] = (),
    ) -> None:
        self.groups = groups
        self.tables = tables
        self.curve = tuple(curve)
        (_, start), (end, most) = (self.curve[0], self.curve[-1]) if curve else ((0, 0), (1, 1))
        self.offset, self.scale = start, (most - start) / max(1.0, end)
        self.measured: tuple[Measured, ...] = ()
        self.names = tuple(group.name for group in groups)
        self.full: IntArray = np.array([g.n_channels for g in groups], dtype=np.int64)
        n = len(FRACTIONS)
        self.grid: FloatArray = np.array([t.grid for t in tables]).reshape(-1, 2, n)
        times: FloatArray = np.array([t.times for t in tables]).reshape(-1, n, n)
        self.times = times
        self.constants: IntArray = np.array(
            [[form.constant for form in t.sizes] for t in tables], dtype=np.int64
        ).reshape(-1, 2)
        position = {name: i for i, name in enumerate(self.names)}
        slopes: dict[tuple[int, int], list[int]] = {}
        for site, table in enumerate(tables):
            for axis, form in enumerate(table.sizes):
                for name, coefficient in form.coefficients.items():
                    slopes.setdefault((site, position[name]), [0, 0])[axis] += coefficient
        self.pair_site: IntArray = np.array([s for s, _ in slopes], dtype=np.int64)
        self.pair_group: IntArray = np.array([g for _, g in slopes], dtype=np.int64)
        self.pair_slopes: IntArray = np.array(list(slopes.values()), dtype=np.int64).reshape(-1, 2)
        is_flat = self._flat()
        self.flat = tuple(name for name, flat in zip(self.names, is_flat, strict=True) if flat)
        whole = is_flat[self.pair_group]
        np.add.at(
            self.constants,
            self.pair_site[whole],
            self.pair_slopes[whole] * self.full[self.pair_group[whole], None],
        )
        self.pair_slopes[whole] = 0

    def calibrated(self, measured: Sequence[Measured]) -> LatencyCost:
        """Return this cost with a curve that agrees with measurements.

        Args:
            measured: Kept counts and measured nanoseconds. The first is of the whole model (counts
                ``None``) and the last are met exactly: of many widths a budget lands on one, and
                there the prediction has to hold. So are those between, the newest first, where they
                fit in with the others: that fewer operators take no longer.

        Raises:
            InputError: The first measurement is missing.
        """
        if not measured or measured[0][0] is not None:
            raise InputError("Expected a measurement of the whole model first. Found none.")
        plain = LatencyCost(self.groups, self.tables)
        whole = (float(plain.value()), float(measured[0][1]))
        points = [whole]
        for kept, ns in reversed(measured[1:]):
            own = (float(plain.value(kept)), float(ns))
            if all((own[0] - x) * (own[1] - y) > 0 for x, y in points):
                points.append(own)
        points.sort()
        # Below the smallest that was measured it goes on as from the whole one to there.
        (x, y), start = points[0], 0.0
        if x < whole[0]:
            start = max(0.0, whole[1] - whole[0] * (whole[1] - y) / (whole[0] - x))
        made = LatencyCost(self.groups, self.tables, curve=[(0.0, min(start, y)), *points])
        made.measured = tuple(measured)
        return made

    def _flat(self) -> NDArray[np.bool_]:
        """Return which groups buy nothing, be the others whole or as narrow as was measured."""
        gained = np.zeros((2, len(self.names)))
        expected = np.zeros((2, len(self.names)))
        slopes, sites = self.pair_slopes, self.pair_site
        least = np.maximum(1, np.rint(FRACTIONS[0] * self.full)).astype(np.int64)
        step = slopes * (self.full - least)[self.pair_group, None]
        for others, counts in enumerate((self.full, least)):
            wide = self.sizes(counts)[sites] + (step if others else 0)
            narrow = wide - step
            before = self.interpolated(sites, wide)
            share = (np.maximum(narrow, 1) / np.maximum(wide, 1)).prod(axis=1)
            np.add.at(gained[others], self.pair_group, before - self.interpolated(sites, narrow))
            np.add.at(expected[others], self.pair_group, before * (1 - share))
        buys = np.any(gained > FLAT * expected, axis=0)
        return np.asarray(~buys, dtype=np.bool_)

    def sizes(self, counts: IntArray) -> IntArray:
        """Return the two lengths of every operator call. Shape ``[n_calls, 2]``."""
        sizes: IntArray = self.constants.copy()
        np.add.at(sizes, self.pair_site, self.pair_slopes * counts[self.pair_group, None])
        return sizes

    def interpolated(self, sites: IntArray, sizes: IntArray) -> IntArray:
        """Return nanoseconds of some operator calls at these lengths. Shape ``[n_sites]``."""
        low, part = self._segments(sites, sizes, 0)
        left, share = self._segments(sites, sizes, 1)
        times, steps = self.times, ((0, 0), (0, 1), (1, 0), (1, 1))
        total = np.zeros(len(sites))
        for down, right in steps:
            weight = (part if down else 1 - part) * (share if right else 1 - share)
            total += weight * times[sites, low + down, left + right]
        rounded: IntArray = np.rint(total).astype(np.int64)
        return rounded

    def _segments(self, sites: IntArray, sizes: IntArray, axis: int) -> tuple[IntArray, FloatArray]:
        grid, size = self.grid[sites, axis], sizes[:, axis]
        segment: IntArray = (size[:, None] >= grid[:, 1:-1]).sum(axis=1).astype(np.int64)
        rows = np.arange(len(sites))
        start, end = grid[rows, segment], grid[rows, segment + 1]
        return segment, np.clip((size - start) / (end - start), 0.0, 1.0)

    def counts(self, kept: Mapping[str, int] | IntArray | None) -> IntArray:
        """Return kept counts as an array in the order of ``names``; ``None`` means all."""
        if kept is None:
            return self.full
        if isinstance(kept, np.ndarray):
            return kept
        counts: IntArray = np.array([kept[name] for name in self.names], dtype=np.int64)
        return counts

    def value(self, kept: Mapping[str, int] | IntArray | None = None) -> int:
        """Return the predicted time in nanoseconds."""
        sizes = self.sizes(self.counts(kept))
        total = int(self.interpolated(np.arange(len(sizes)), sizes).sum())
        if not self.curve:
            return total
        sums, times = np.array(self.curve).T
        return round(float(np.interp(total, sums, times)))

    def marginals(self, kept: Mapping[str, int] | IntArray | None = None) -> IntArray:
        """Return what one more channel of each group is worth, see the class."""
        sites, slopes = self.pair_site, self.pair_slopes
        sizes = self.sizes(self.counts(kept))[sites]
        now = self.interpolated(sites, sizes)
        one = now - self.interpolated(sites, sizes - slopes)
        # Down to the smallest width that was measured, in steps of one channel.
        room = (sizes - self.grid[sites, :, 0]) / np.maximum(slopes, 1)
        steps = np.maximum(1, np.where(slopes > 0, room, 0).max(axis=1, initial=1)).astype(np.int64)
        mean = (now - self.interpolated(sites, sizes - slopes * steps[:, None])) // steps
        marginals: IntArray = np.zeros(len(self.names), dtype=np.int64)
        np.add.at(marginals, self.pair_group, np.maximum(one, mean))
        # The average scale: where the curve is flat, a step further it need not be.
        scaled: IntArray = np.rint(marginals * self.scale).astype(np.int64)
        return scaled


def _table(groups: CouplingGroups, site: OperatorSite, timer: OperatorTimer) -> SiteTable:
    """Time one call at all widths; what cannot be run alone is left to the curve."""
    n = len(FRACTIONS)
    clusters = _clusters(site)
    widths = [_widths(groups, forms) for forms in clusters]
    times = np.zeros((n, n))
    rows, columns = (range(n) if forms else [n - 1] for forms in clusters)
    for row in rows:
        for column in columns:
            kept = {**widths[0][row], **widths[1][column]}
            times[row, column] = timer(OperatorCall.of(site, kept)) or 0
    if not clusters[0]:
        times[:] = times[-1]
    if not clusters[1]:
        times[:] = times[:, -1:]
    # Fewer channels never take longer: what differs from that is noise, taken half from each side.
    for axis in (0, 1):
        times = _ascending(times, axis)
    sizes = tuple(_sum(forms) for forms in clusters)
    grid = np.array(
        [
            _strictly_ascending([form.value(kept) for kept in own])
            for form, own in zip(sizes, widths, strict=True)
        ]
    )
    return SiteTable((sizes[0], sizes[1]), grid, times)


def _clusters(site: OperatorSite) -> tuple[list[LinearForm], list[LinearForm]]:
    """Return the sizes of a call in two sets that share no group; in one where there are more."""
    outputs = [tensor for tensor in site.outputs if tensor is not None]
    forms: dict[tuple[int, tuple[tuple[str, int], ...]], LinearForm] = {}
    for tensor in (*site.inputs, *outputs):
        for factor in (f for size in tensor.shape for f in size.factors):
            forms[factor.constant, tuple(sorted(factor.coefficients.items()))] = factor
    clusters: list[tuple[set[str], list[LinearForm]]] = []
    for form in forms.values():
        names, members = set(form.coefficients), [form]
        apart = []
        for others, own in clusters:
            if others & names:
                names, members = names | others, own + members
            else:
                apart.append((others, own))
        clusters = [*apart, (names, members)]
    if len(clusters) > 2:
        return list(forms.values()), []
    first, second = [*(own for _, own in clusters), [], []][:2]
    return first, second


def _widths(groups: CouplingGroups, forms: Sequence[LinearForm]) -> list[dict[str, int]]:
    """Return kept counts of all groups in these sizes, for every fraction."""
    names = sorted({name for form in forms for name in form.coefficients})
    return [
        {name: _width(fraction, groups[name].n_channels) for name in names}
        for fraction in FRACTIONS
    ]


def _width(fraction: float, n_channels: int) -> int:
    """Return about this fraction of the channels, in whole blocks where that is possible."""
    width = max(1, round(fraction * n_channels))
    blocks = round(width / BLOCK) * BLOCK
    return blocks if 0 < blocks < n_channels else width


def _sum(forms: Sequence[LinearForm]) -> LinearForm:
    total: dict[str, int] = {}
    for form in forms:
        for name, coefficient in form.coefficients.items():
            total[name] = total.get(name, 0) + coefficient
    return LinearForm(sum(form.constant for form in forms), total)


def _strictly_ascending(values: Sequence[int]) -> list[float]:
    """Move equal values, at the narrow end of narrow layers, apart towards lower ones."""
    ascending = [float(values[-1])]
    for value in reversed(values[:-1]):
        ascending.append(min(float(value), ascending[-1] - 1))
    return ascending[::-1]


def _ascending(times: FloatArray, axis: int) -> FloatArray:
    rising = np.maximum.accumulate(times, axis=axis)
    falling = np.flip(np.minimum.accumulate(np.flip(times, axis), axis=axis), axis)
    result: FloatArray = (rising + falling) / 2
    return result
