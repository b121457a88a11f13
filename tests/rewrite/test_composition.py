"""Pruning twice equals pruning once by the composed plan."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import conv_groups, conv_net

from taskprune.coupling.groups import CouplingGroups
from taskprune.plan.composition import compose
from taskprune.plan.plan import build_plan
from taskprune.rewrite import apply_plan


def drops(data: st.DataObject, groups: CouplingGroups) -> dict[str, np.ndarray]:
    return {
        group.name: np.array(
            sorted(data.draw(st.sets(st.integers(0, group.n_channels - 1), max_size=2)))[
                : group.n_channels - 1
            ],
            dtype=np.int64,
        )
        for group in groups
    }


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_two_rewrites_equal_the_composed_one(data: st.DataObject) -> None:
    made = conv_net()
    first = build_plan(made.groups, drops(data, made.groups))
    once = apply_plan(made.model, first)
    smaller = conv_groups(first.kept["conv1"], first.kept["conv2"])
    second = build_plan(smaller, drops(data, smaller))
    twice = apply_plan(once, second)
    at_once = apply_plan(made.model, compose(first, second))
    assert str(twice) == str(at_once)
    for (name, a), b in zip(twice.state_dict().items(), at_once.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
