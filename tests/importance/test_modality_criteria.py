"""Criteria that look across modalities find what both sensors carry; others cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from planted_sensors import (
    BRANCHES,
    TASKS,
    Batch,
    TwoSensors,
    coupled,
    lost_for_good,
    planted,
    squared,
)
from torch import Tensor

from taskprune import Task
from taskprune.calling.modality import FUSION
from taskprune.errors import InputError
from taskprune.importance import (
    AlterMomaImportance,
    ChannelScores,
    CrossPruneImportance,
    Importance,
    Modality,
    TaylorImportance,
    difference,
    discount,
    modality_of_groups,
    score,
)


def scored(criterion: Importance) -> tuple[TwoSensors, list[Batch], ChannelScores]:
    net, batches = planted()
    return net, batches, score(net, coupled(net, batches), TASKS, batches, importance=criterion)


CRITERIA: dict[str, AlterMomaImportance | CrossPruneImportance] = {
    "altermoma": AlterMomaImportance(BRANCHES, learning_rate=3e-2, combine=difference),
    "crossprune": CrossPruneImportance(
        BRANCHES, fused="fusion", removed=0.25, learning_rate=3e-2, steps=60, pull=0.5
    ),
}


def first_to_go(scores: ChannelScores) -> tuple[str, int]:
    """Return the branch and channel with the lowest score among both branches'."""
    lowest = {name: scores[name].total.min(0) for name in ("camera_branch", "lidar_branch")}
    name = min(lowest, key=lambda n: float(lowest[n].values))
    return name, int(lowest[name].indices)


@pytest.mark.parametrize("name", CRITERIA)
def test_what_both_sensors_carry_goes_first_and_the_fused_feature_survives(name: str) -> None:
    net, batches, scores = scored(CRITERIA[name])
    assert first_to_go(scores)[1] == 0
    assert lost_for_good(net, batches, first_to_go(scores)) < 1e-9


def test_crossprune_keeps_the_other_copy() -> None:
    _, _, scores = scored(CRITERIA["crossprune"])
    copies = [float(scores[branch].total[0]) for branch in ("camera_branch", "lidar_branch")]
    others = [float(scores[b].total[1:].min()) for b in ("camera_branch", "lidar_branch")]
    assert min(copies) < min(others) <= max(copies)


def test_a_criterion_within_one_branch_keeps_both_copies() -> None:
    net, batches, scores = scored(TaylorImportance())
    assert first_to_go(scores)[1] != 0
    assert lost_for_good(net, batches, first_to_go(scores)) > 0.1


@pytest.mark.parametrize("name", CRITERIA)
def test_the_model_is_left_as_it_was(name: str) -> None:
    net, batches = planted()
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    score(net, coupled(net, batches), TASKS, batches, importance=CRITERIA[name])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_without_redundancy_the_score_is_the_contribution() -> None:
    criterion = AlterMomaImportance(BRANCHES, beta=0.0, normalise="sum")
    _, _, scores = scored(criterion)
    for branch in ("camera_branch", "lidar_branch"):
        assert (scores[branch].total >= 0).all()
        assert float(scores[branch].total.sum()) == pytest.approx(1.0)


def test_a_discount_takes_away_all_worth_at_most() -> None:
    contribution = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    redundancy = torch.tensor([0.0, 0.0, 1.0, 1e9, 5.0], dtype=torch.float64)
    worth = discount(contribution, redundancy)
    torch.testing.assert_close(
        worth, worth.new_tensor([0.0, 1.0, 0.5, 0.0, 0.0]), atol=1e-8, rtol=0
    )
    assert (worth >= 0).all()
    assert float(difference(contribution, redundancy).min()) < 0


def test_groups_belong_to_the_branch_that_makes_them() -> None:
    net, batches = planted()
    labels = modality_of_groups(coupled(net, batches), BRANCHES)
    assert labels == {"camera_branch": "camera", "lidar_branch": "lidar", "fusion": FUSION}


@pytest.mark.parametrize("name", CRITERIA)
def test_modalities_found_from_the_inputs_give_the_same_scores(name: str) -> None:
    _, _, declared = scored(CRITERIA[name])
    _, _, found = scored(replace(CRITERIA[name], modalities=None))
    for group, own in declared.groups.items():
        assert torch.equal(own.total, found[group].total)


def test_several_tasks_keep_scores_of_their_own() -> None:
    net, batches = planted()
    tasks = {
        "near": TASKS["depth"],
        "far": Task(lambda out, batch: 3 * squared(out, batch), outputs="output"),
    }
    scores = score(
        net, coupled(net, batches), tasks, batches, importance=AlterMomaImportance(BRANCHES)
    )
    assert scores.tasks == ("near", "far")
    assert scores["fusion"].per_task.shape == (2, 10)


@pytest.mark.parametrize("name", CRITERIA)
def test_tasks_may_have_loaders_of_their_own_and_batches_without_labels(name: str) -> None:
    net, batches = planted()

    def sometimes(outputs: Tensor, batch: Any) -> Tensor | None:
        return squared(outputs, batch) if batch[1] is not None else None

    tasks = {"near": TASKS["depth"], "far": Task(sometimes, outputs="output")}
    loaders: dict[str, list[Any]] = {
        "near": batches[:3],
        "far": [batches[3], (batches[4][0], None)],
    }
    scores = score(net, coupled(net, batches), tasks, loaders, importance=CRITERIA[name])
    assert all(own.total.isfinite().all() for own in scores.groups.values())


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ((BRANCHES[0],), "at least two"),
        ((BRANCHES[0], Modality("lidar", "radar_branch")), "no such module"),
        ((Modality("a", "head"), Modality("a", "fusion")), "name of its own"),
    ],
)
def test_modalities_that_the_model_lacks_are_refused(
    modalities: tuple[Modality, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        scored(AlterMomaImportance(modalities))
