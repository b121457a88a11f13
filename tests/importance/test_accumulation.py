"""Effects of channels of one group add up before they are squared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hand_made import SECOND, batches, two_task_groups, two_task_net, two_tasks
from hypothesis import given
from hypothesis import strategies as st

from taskprune.errors import InputError
from taskprune.importance import TaskTaylorImportance, score
from taskprune.importance.accumulation import accumulated
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety

FREE = Safety(min_channels=1, max_removed=1.0, max_removed_private=1.0, protected_quantile=1.0)


@given(
    st.lists(st.floats(0, 100), max_size=20).map(sorted),
    st.floats(0, 1),
)
def test_what_is_added_sums_to_the_score_of_all(scores: list[float], correlation: float) -> None:
    added = accumulated(np.array(scores), correlation)
    roots = np.sqrt(scores)
    together = (1 - correlation) * np.square(roots).sum() + correlation * roots.sum() ** 2
    assert added.sum() == pytest.approx(together)
    assert (np.diff(added) >= -1e-9).all()


def test_gains_stay_gains_and_cost_nothing_on_top() -> None:
    added = accumulated(np.array([-2.0, -1.0, 4.0, 9.0]), 0.5)
    assert added.tolist() == [-2.0, -1.0, 4.0, 9.0 + 3.0 * 2.0]


def test_equal_channels_of_a_group_get_ever_dearer() -> None:
    net = two_task_net()
    groups = two_task_groups(net)
    kept = {}
    for correlation in (0.0, 1.0):
        criterion = TaskTaylorImportance(correlation=correlation)
        scores = score(net, groups, two_tasks(), batches(), importance=criterion)
        assert scores.correlation == correlation
        level = {
            name: replace(own, total=torch.full_like(own.total, 1.0 if name == SECOND else 1.5))
            for name, own in scores.groups.items()
        }
        scores = replace(scores, groups=level)
        kept[correlation] = solve(groups, scores, Budget(params=0.95), safety=FREE).kept[SECOND]
    assert kept[0.0] < kept[1.0]


@pytest.mark.parametrize("correlation", [-0.1, 1.1, float("nan")])
def test_a_correlation_is_a_number_from_0_to_1(correlation: float) -> None:
    with pytest.raises(InputError, match="correlation"):
        TaskTaylorImportance(correlation=correlation)
