"""Costs as functions of kept counts: exact, and cheap to keep up to date."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskprune.cost import CostModel, count_macs, count_params
from taskprune.coupling.groups import (
    CouplingGroup,
    CouplingGroups,
    IntArray,
    LinearForm,
    MacsTerm,
    TensorSlice,
)
from taskprune.errors import InputError

N_GROUPS = 4


def empty_groups(sizes: list[int], macs: tuple[MacsTerm, ...] = ()) -> CouplingGroups:
    groups = tuple(CouplingGroup(f"g{i}", size, ()) for i, size in enumerate(sizes))
    return CouplingGroups(groups, (), {}, frozenset(), macs=macs)


forms = st.builds(
    LinearForm,
    st.integers(0, 5),
    st.dictionaries(st.sampled_from([f"g{i}" for i in range(N_GROUPS)]), st.integers(0, 3)),
)
macs_terms = st.builds(
    MacsTerm,
    st.just("mm"),
    st.just(""),
    st.integers(1, 9),
    st.lists(forms, max_size=3).map(tuple),
)
models = st.builds(
    empty_groups,
    st.lists(st.integers(1, 9), min_size=N_GROUPS, max_size=N_GROUPS),
    st.lists(macs_terms, max_size=6).map(tuple),
)


def by_definition(groups: CouplingGroups, counts: IntArray) -> int:
    kept = {group.name: int(n) for group, n in zip(groups, counts, strict=True)}
    total = 0
    for term in groups.macs:
        product = term.multiplier
        for factor in term.factors:
            product *= factor.value(kept)
        total += product
    return total


@given(models, st.data())
@settings(max_examples=60, deadline=None)
def test_value_and_marginals_follow_the_definition(
    groups: CouplingGroups, data: st.DataObject
) -> None:
    model = CostModel.of_macs(groups)
    counts = np.array([data.draw(st.integers(1, g.n_channels)) for g in groups], dtype=np.int64)
    assert model.value(counts) == by_definition(groups, counts)
    marginals = model.marginals(counts)
    for i in range(N_GROUPS):
        fewer = counts.copy()
        fewer[i] -= 1
        assert marginals[i] == by_definition(groups, counts) - by_definition(groups, fewer)


def test_parameters_are_counted_by_their_members() -> None:
    def index(n: int, per_channel: int = 1) -> IntArray:
        return np.arange(n * per_channel, dtype=np.int64).reshape(n, per_channel)

    # Conv(3 -> 8), conv(8 -> 8) whose output is added to its input, linear on 2x2 positions.
    members = (
        TensorSlice("a.weight", 0, index(8)),
        TensorSlice("b.weight", 0, index(8)),
        TensorSlice("b.weight", 1, index(8), False),
        TensorSlice("norm.running_mean", 0, index(8)),
        TensorSlice("head.weight", 1, index(8, 4), False),
    )
    groups = CouplingGroups(
        (CouplingGroup("a", 8, members),),
        (),
        {
            "a.weight": (8, 3, 3, 3),
            "b.weight": (8, 8, 1, 1),
            "head.weight": (5, 32),
            "head.bias": (5,),
            "norm.running_mean": (8,),
        },
        frozenset({"a.weight", "b.weight", "head.weight", "head.bias"}),
    )
    assert count_params(groups) == 216 + 64 + 160 + 5
    for kept in range(1, 9):
        assert count_params(groups, {"a": kept}) == 27 * kept + kept**2 + 20 * kept + 5


def test_wrong_names_are_refused() -> None:
    groups = empty_groups([2, 3])
    with pytest.raises(InputError, match="`g1` is missing"):
        count_macs(groups, {"g0": 1})
    with pytest.raises(InputError, match="`other` is no group"):
        count_macs(groups, {"g0": 1, "g1": 1, "other": 2})


def test_model_without_groups_has_a_cost() -> None:
    macs = (MacsTerm("mm", "", 6, (LinearForm(7),)),)
    model = CostModel.of_macs(empty_groups([], macs))
    assert model.value() == 42
    assert model.marginals().shape == (0,)
