"""From ties to atomic channels: connected components, and the fixpoint over reshapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from taskprune.coupling.forms import Classes
from taskprune.coupling.groups import IntArray
from taskprune.coupling.unit_table import Reshape, UnitTable

FactorPolicy: TypeAlias = Callable[[Sequence[int]], int]
"""``sizes of the factors that could shrink, slowest first -> position of the one that may``."""


def prefer_outer(sizes: Sequence[int]) -> int:  # noqa: ARG001 - a policy that needs no sizes
    """Let the slowest factor shrink: heads before head width."""
    return 0


def prefer_inner(sizes: Sequence[int]) -> int:
    """Let the fastest factor shrink: head width before heads."""
    return len(sizes) - 1


@dataclass
class Partition:
    """The classes of a unit table, and what the reshapes added to reach them.

    Attributes:
        classes: Atomic channels.
        passed_over: Units of factors that stay because another factor shrinks, with their reshape.
        rigid: Reshapes none of whose factors can shrink.
    """

    classes: Classes
    passed_over: list[tuple[IntArray, Reshape]] = field(default_factory=list)
    rigid: list[Reshape] = field(default_factory=list)


def partition(table: UnitTable, policy: FactorPolicy) -> Partition:
    """Solve ties, freezes and reshapes.

    A reshape with one factor that can shrink ties every entry to its index in that factor; one
    with none freezes the entries; where several could shrink the policy decides. Each round
    decides at least one reshape, so there are no more rounds than reshapes, and few in practice.
    """
    left = [side for side, _ in table.ties]
    right = [side for _, side in table.ties]
    frozen = [units for units, _ in table.frozen]
    undecided = list(table.reshapes)
    result = Partition(_components(table.n_units, left, right, frozen))
    while undecided:
        remaining: list[Reshape] = []
        for record in undecided:
            live = _live_factors(record, result.classes)
            if len(live) > 1:
                remaining.append(record)
                continue
            if live:
                left.append(record.flat)
                right.append(record.spread(live[0]))
            else:
                frozen += [record.flat, *_tracked(record)]
                result.rigid.append(record)
        if len(remaining) == len(undecided):
            chosen = _choose(remaining, result, policy)
            frozen += chosen
        undecided = remaining
        result.classes = _components(table.n_units, left, right, frozen)
    return result


def _components(
    n_units: int, left: list[IntArray], right: list[IntArray], frozen: list[IntArray]
) -> Classes:
    labels: IntArray
    if left:
        rows, columns = np.concatenate(left), np.concatenate(right)
        n_classes, labels = _connected(n_units, rows, columns)
    else:
        n_classes, labels = n_units, np.arange(n_units, dtype=np.int64)
    is_frozen: NDArray[np.bool_] = np.zeros(n_classes, np.bool_)
    if frozen:
        is_frozen[labels[np.concatenate(frozen)]] = True
    return Classes(labels, is_frozen)


def _connected(n_nodes: int, left: IntArray, right: IntArray) -> tuple[int, IntArray]:
    """Return how many connected components the edges make of the nodes, and each one's."""
    from scipy.sparse import coo_array  # half as long to import as the rest of taskprune
    from scipy.sparse.csgraph import connected_components

    weights = np.ones(len(left), np.int8)
    graph = coo_array((weights, (left, right)), shape=(n_nodes, n_nodes))
    n_parts, part = connected_components(graph, directed=False)
    return int(n_parts), part.astype(np.int64)


def _tracked(record: Reshape) -> list[IntArray]:
    return [units for units in record.factors if units is not None]


def _live_factors(record: Reshape, classes: Classes) -> list[int]:
    """Return the positions of the factors that can still shrink."""
    if classes.frozen[classes.labels[record.flat]].all():
        return []
    return [
        position
        for position, units in enumerate(record.factors)
        if units is not None and not classes.frozen[classes.labels[units]].all()
    ]


def _choose(records: list[Reshape], result: Partition, policy: FactorPolicy) -> list[IntArray]:
    """Decide all reshapes that are left in the light of each other; return what stays."""
    classes = Classes(result.classes.labels, result.classes.frozen.copy())
    stay: list[IntArray] = []
    for record in records:
        live = _live_factors(record, classes)
        if len(live) < 2:
            continue
        able = [p for p in live if _comes_apart(record, p, classes)] or live
        chosen = able[policy([record.sizes[p] for p in able])]
        for position in live:
            units = record.factors[position]
            if position != chosen and units is not None:
                classes.frozen[classes.labels[units]] = True
                stay.append(units)
                result.passed_over.append((units, record))
    return stay


def _comes_apart(record: Reshape, position: int, classes: Classes) -> bool:
    """Whether an index of this factor can go and another one stay, as things are tied by now.

    The parts of a split attention cannot: the convolution that makes them keeps as many channels
    in each.
    """
    units = record.factors[position]
    n_indices = record.sizes[position]
    entries = classes.labels[record.flat].reshape(record.sizes)
    rows = np.moveaxis(entries, position, 0).reshape(n_indices, -1)
    if units is not None:
        rows = np.concatenate([rows, classes.labels[units][:, None]], axis=1)
    used, columns = np.unique(rows, return_inverse=True)
    n_nodes = n_indices + len(used)
    indices = np.repeat(np.arange(n_indices), rows.shape[1])
    n_parts, part = _connected(n_nodes, indices, n_indices + columns.reshape(-1))
    stays = np.unique(part[n_indices:][classes.frozen[used]])
    return bool(n_parts > 1 and len(stays) < n_parts)
