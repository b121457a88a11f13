"""The steps in which channels go: within a group by score, in multiples where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskprune.coupling.groups import IntArray
from taskprune.solver.removable import Removable

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """The steps in which the removable channels of one group go.

    Attributes:
        ends: Channels gone after each block, ascending. Shape ``[n_blocks]``.
        scores: Mean score of the channels in each block, ascending. Shape ``[n_blocks]``.
    """

    ends: IntArray
    scores: FloatArray


def in_multiples(part: Removable, size: int) -> Blocks:
    """Cut a group's order so that what is kept after each block is a multiple of ``size``.

    No block is less than a step of the group.
    """
    n_channels, step = part.group.n_channels, part.group.step
    ends = np.arange(step, len(part.order) + 1, step, dtype=np.int64)
    ends = ends[(n_channels - ends) % size == 0]
    if not ends.size:
        return Blocks(ends, np.empty(0))
    starts = np.concatenate([[0], ends[:-1]])
    sums = np.add.reduceat(part.scores[: ends[-1]], starts)
    return Blocks(ends, sums / (ends - starts))


class Table:
    """The blocks of all groups side by side, by group, then first to go first."""

    def __init__(self, blocks: Sequence[Blocks]) -> None:
        sizes = [len(b.ends) for b in blocks]
        self.group: IntArray = np.repeat(np.arange(len(blocks), dtype=np.int64), sizes)
        self.starts: IntArray = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        empty_ints, empty = np.empty(0, dtype=np.int64), np.empty(0)
        self.ends: IntArray = np.concatenate([empty_ints, *(b.ends for b in blocks)])
        self.scores: FloatArray = np.concatenate([empty, *(b.scores for b in blocks)])
        # Scores ascend within a group: its lowest and highest above 0.
        gains = np.bincount(self.group[self.scores <= 0], minlength=len(blocks))
        self.priced: IntArray = np.flatnonzero(gains < np.diff(self.starts))
        self.lowest = self.scores[self.starts[self.priced] + gains[self.priced]]
        self.highest = self.scores[self.starts[self.priced + 1] - 1]

    def left(self, removed: IntArray, wanted: NDArray[np.bool_]) -> IntArray:
        """Return the blocks of the wanted groups that are not gone yet."""
        left: IntArray = np.flatnonzero((self.ends > removed[self.group]) & wanted[self.group])
        return left

    def removed_after(self, taken: IntArray, removed: IntArray) -> IntArray:
        """Return the channels gone per group once these blocks are gone as well."""
        after: IntArray = removed.copy()
        np.maximum.at(after, self.group[taken], self.ends[taken])
        return after

    def key_range(self, scales: FloatArray) -> tuple[float, float]:
        """Return logarithms of a key below which only gains go, and of one below which all do."""
        wanted = scales[self.priced] > 0
        if not wanted.any():
            return 0.0, 0.0
        logs = np.log(scales[self.priced[wanted]])
        low = np.log(self.lowest[wanted]) - logs
        high = np.log(self.highest[wanted]) - logs
        return float(low.min()) - 1e-6, float(high.max()) + 1e-6

    def below(self, thresholds: FloatArray, wanted: NDArray[np.bool_]) -> IntArray:
        """Return the channels gone per group when every block up to its threshold goes.

        A binary search in all groups side by side: the cost is that of the groups, not channels.
        """
        low = self.starts[:-1].copy()
        high = np.where(wanted, self.starts[1:], low)
        while (low < high).any():
            middle = np.minimum((low + high) // 2, max(len(self.scores) - 1, 0))
            inside = (low < high) & (self.scores[middle] <= thresholds)
            high = np.where((low < high) & ~inside, middle, high)
            low = np.where(inside, middle + 1, low)
        gone: IntArray = np.zeros(len(low), dtype=np.int64)
        some = low > self.starts[:-1]
        gone[some] = self.ends[low[some] - 1]
        return gone


def order_keys(scores: FloatArray, prices: FloatArray, power: float) -> FloatArray:
    """Order of removal. A negative score, a gain, gets the more urgent the more it saves."""
    if power == 0:
        return scores
    weights = prices**power
    keys: FloatArray = np.where(scores >= 0, scores / weights, scores * weights)
    return keys
