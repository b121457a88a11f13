"""Axes as products of factors: reshapes and ties agree with what numpy does to unit ids."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskprune.coupling.axes import axis_size, is_tracked, joined, matching_blocks, untracked
from taskprune.coupling.forms import Classes, constant
from taskprune.coupling.groups import FreezeReason, IntArray
from taskprune.coupling.partition import partition, prefer_inner, prefer_outer
from taskprune.coupling.unit_table import UnitTable

WHY = FreezeReason("structure", "test")
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(SIZES, st.data())
def test_blocks_of_a_reshape_have_equal_products_and_cover_all_dims(
    sizes: list[int], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sizes)))) | {0, len(sizes)})
    after = [prod(sizes[a:b]) for a, b in pairwise(cuts)]
    blocks = matching_blocks(sizes, after)
    assert blocks is not None
    assert [i for block, _ in blocks for i in block] == list(range(len(sizes)))
    assert [j for _, block in blocks for j in block] == list(range(len(after)))
    assert all(
        prod(sizes[i] for i in left) == prod(after[j] for j in right) for left, right in blocks
    )


def test_sizes_that_disagree_have_no_blocks() -> None:
    assert matching_blocks([2, 3], [4]) is None


@given(SIZES)
def test_merging_and_cutting_again_ties_what_lies_in_the_same_place(sizes: list[int]) -> None:
    """With one tracked dim, a merge and a cut are the identity on its units."""
    table = UnitTable()
    axes = [table.column("w", d, n) if d == 0 else untracked(n) for d, n in enumerate(sizes)]
    merged = table.regroup(axes, [prod(sizes)], WHY)
    again = table.regroup(merged, sizes, WHY)
    assert [axis_size(axis) for axis in again] == sizes
    before = Classes(np.arange(table.n_units), np.zeros(table.n_units, np.bool_))
    if sizes[0] > 1:
        assert np.array_equal(table.flat(again[0], WHY), table.flat(axes[0], WHY))
        form = before.axis_form(merged[0])
        assert form is not None
        assert form.counts.tolist() == [prod(sizes[1:])] * sizes[0]


@pytest.mark.parametrize(("policy", "live"), [(prefer_outer, 0), (prefer_inner, 1)])
def test_one_factor_of_a_reshape_shrinks_and_the_policy_says_which(
    policy: object, live: int
) -> None:
    table = UnitTable()
    flat = table.column("w", 0, 6)
    factors = table.regroup([flat], [2, 3], WHY)
    labels = partition(table, policy).classes.labels  # type: ignore[arg-type]
    grid = labels[table.flat(flat, WHY)].reshape(2, 3)
    own = labels[table.flat(factors[live], WHY)]
    assert np.array_equal(grid, np.broadcast_to(own[:, None] if live == 0 else own, (2, 3)))
    assert len(np.unique(grid)) == (2, 3)[live]


def test_a_frozen_factor_leaves_the_other_live() -> None:
    table = UnitTable()
    flat = table.column("w", 0, 6)
    heads, width = table.regroup([flat], [2, 3], WHY)
    table.freeze_axis(heads, WHY)
    classes = partition(table, prefer_outer).classes
    assert not classes.frozen[classes.labels[table.flat(width, WHY)]].any()
    assert len(np.unique(classes.labels[table.flat(flat, WHY)])) == 3


def test_a_misaligned_reshape_freezes() -> None:
    table = UnitTable()
    rows, columns = table.column("w", 0, 4), table.column("w", 1, 6)
    mixed = table.regroup([rows, columns], [6, 4], WHY)
    assert not any(is_tracked(axis) for axis in mixed)
    assert partition(table, prefer_outer).classes.frozen.all()


def test_long_untracked_axes_are_never_written_out() -> None:
    table = UnitTable()
    axis = joined([table.column("w", 0, 8), untracked(10**9)])
    assert table.n_units == 8
    pieces = table.regroup([axis], [8, 10**5, 10**4], WHY)
    assert [axis_size(piece) for piece in pieces] == [8, 10**5, 10**4]
    assert table.n_units == 8


def units(*numbers: int) -> IntArray:
    return np.array(numbers, dtype=np.int64)


def test_forms_are_equal_exactly_if_they_agree_whatever_is_removed() -> None:
    free = Classes(units(0, 1, 2, 0, 1, 2, 3), np.array([False, False, False, True]))
    once, twice = free.units_form(units(0, 1, 2)), free.units_form(units(0, 1, 2, 3, 4, 5))
    assert twice.equals(once.plus(once))
    assert not once.equals(free.units_form(units(0, 1)))
    half = twice.floor_divided(constant(2))
    assert half is not None
    assert half.equals(once)
    assert once.floor_divided(constant(2)) is None
    assert once.times(once) is None
    ratio = twice.floor_divided(once)
    assert ratio is not None
    assert ratio.equals(constant(2))
    assert free.units_form(units(6)).equals(constant(1))
    assert once.plus(once, sign=-1).equals(constant(0))
