"""Non-dominated sorting: how many points lie below each other point in a chain."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def front_numbers(points: FloatArray) -> FloatArray:
    """Return the front of each point, from 0 for those that no other is below.

    Points are met in lexicographic order, so that those below a point come before it; the first
    front without one is found by bisection, because a point above some point of a front is above
    some point of every earlier one (efficient non-dominated sort, Zhang et al., IEEE TEVC 2015).
    With up to three coordinates a front is a staircase and each step of the bisection is one
    itself: O(n log^2 n).

    Args:
        points: Shape ``[n_points, n_coordinates]``.
    """
    unique, inverse = np.unique(points, axis=0, return_inverse=True)
    if unique.shape[1] == 0:
        return np.zeros(len(points))
    if unique.shape[1] == 1:
        # In one dim all points are comparable.
        return inverse.reshape(-1).astype(np.float64)
    # The first coordinate never decreases from here on: only the others have to be compared.
    rest = unique[:, 1:]
    kind = _Staircase if rest.shape[1] <= 2 else _Cloud
    fronts: list[_Front] = []
    numbers = np.empty(len(rest))
    for i, point in enumerate(rest.tolist()):
        low, high = 0, len(fronts)
        while low < high:
            middle = (low + high) // 2
            if fronts[middle].is_below(point):
                low = middle + 1
            else:
                high = middle
        if low == len(fronts):
            fronts.append(kind())
        fronts[low].add(point)
        numbers[i] = low
    return numbers[inverse.reshape(-1)]


class _Front(Protocol):
    def is_below(self, point: list[float], /) -> bool:
        """Return whether some point of the front is nowhere above this one."""

    def add(self, point: list[float], /) -> None:
        """Take in a point."""


class _Staircase:
    """Points of one or two coordinates, without those that others are below of."""

    def __init__(self) -> None:
        self.xs: list[float] = []  # ascending
        self.ys: list[float] = []  # descending

    def is_below(self, point: list[float]) -> bool:
        position = bisect_right(self.xs, point[0])
        return position > 0 and self.ys[position - 1] <= point[-1]

    def add(self, point: list[float]) -> None:
        x, y = point[0], point[-1]
        start = bisect_left(self.xs, x)
        end = start
        while end < len(self.xs) and self.ys[end] >= y:
            end += 1
        self.xs[start:end] = [x]
        self.ys[start:end] = [y]


class _Cloud:
    """Points of any number of coordinates."""

    def __init__(self) -> None:
        # Coordinate by coordinate: comparing one of all points reads memory in a row.
        self.columns: FloatArray = np.empty((0, 0))
        self.n_points = 0

    def is_below(self, point: list[float]) -> bool:
        columns = self.columns[:, : self.n_points]
        below = columns[0] <= point[0]
        for column, value in zip(columns[1:], point[1:], strict=True):
            below &= column <= value
        return bool(below.any())

    def add(self, point: list[float]) -> None:
        if self.n_points == self.columns.shape[1]:
            larger = np.empty((len(point), 2 * self.n_points + 8))
            larger[: len(self.columns), : self.n_points] = self.columns
            self.columns = larger
        self.columns[:, self.n_points] = point
        self.n_points += 1
