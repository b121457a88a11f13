"""Criteria that look across modalities find what both sensors carry; others cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taskprune import Task
from taskprune.coupling import CouplingGroups, couple
from taskprune.errors import InputError
from taskprune.graph import trace
from taskprune.importance import (
    AlterMomaImportance,
    ChannelScores,
    CrossPruneImportance,
    Importance,
    Modality,
    TaylorImportance,
    modality_of_groups,
    score,
)
from taskprune.modality import FUSION

N_OWN = 3
BRANCHES = (Modality("camera", "camera_branch"), Modality("lidar", "lidar_branch"))
Batch = tuple[tuple[Tensor, Tensor], Tensor]


class TwoSensors(nn.Module):
    """Channel 0 of both branches is the same feature; the other three of each are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.camera_branch = nn.Linear(1 + N_OWN, 1 + N_OWN, bias=False)
        self.lidar_branch = nn.Linear(1 + N_OWN, 1 + N_OWN, bias=False)
        self.fusion = nn.Linear(2 * (1 + N_OWN), 10, bias=False)
        self.head = nn.Linear(10, 1, bias=False)

    def forward(self, camera: Tensor, lidar: Tensor) -> Tensor:
        both = torch.cat((self.camera_branch(camera), self.lidar_branch(lidar)), dim=1)
        out: Tensor = self.head(self.fusion(both))
        return out


def planted() -> tuple[TwoSensors, list[Batch]]:
    """Return the net at its optimum, and batches whose labels are noisy."""
    g = torch.Generator().manual_seed(0)
    net = TwoSensors().double()
    with torch.no_grad():
        for branch in (net.camera_branch, net.lidar_branch):
            branch.weight.copy_(torch.eye(1 + N_OWN))
        net.fusion.weight.copy_(torch.randn(net.fusion.weight.shape, generator=g) / 3)
        # Each sensor brings half of the shared feature, which as a whole matters most.
        for shared in (0, 1 + N_OWN):
            net.fusion.weight[:, shared] *= 3
        net.fusion.weight[:, 1 + N_OWN] = net.fusion.weight[:, 0]
        net.head.weight.copy_(torch.randn(1, 10, generator=g) / 3)
    batches: list[Batch] = []
    for _ in range(12):
        camera, lidar = torch.randn(2, 32, 1 + N_OWN, generator=g, dtype=torch.float64)
        lidar[:, 0] = camera[:, 0]
        with torch.no_grad():
            clean = net(camera, lidar)
        noise = 0.3 * torch.randn(clean.shape, generator=g, dtype=torch.float64)
        batches.append(((camera, lidar), clean + noise))
    return net, batches


def squared(outputs: Tensor, batch: Any) -> Tensor:
    loss: Tensor = (outputs - batch[1]).square().mean()
    return loss


TASKS = {"depth": Task(squared, outputs="output")}


def coupled(net: nn.Module, batches: list[Batch]) -> CouplingGroups:
    return couple(trace(net, batches[0][0], tasks={"depth": "output"}))


def scored(criterion: Importance) -> tuple[TwoSensors, list[Batch], ChannelScores]:
    net, batches = planted()
    return net, batches, score(net, coupled(net, batches), TASKS, batches, importance=criterion)


CRITERIA: dict[str, AlterMomaImportance | CrossPruneImportance] = {
    "altermoma": AlterMomaImportance(BRANCHES, learning_rate=3e-2),
    "crossprune": CrossPruneImportance(
        BRANCHES, fused="fusion", removed=0.25, learning_rate=3e-2, steps=10
    ),
}


def first_to_go(scores: ChannelScores) -> tuple[str, int]:
    """Return the branch and channel with the lowest score among both branches'."""
    lowest = {name: scores.total[name].min(0) for name in ("camera_branch", "lidar_branch")}
    name = min(lowest, key=lambda n: float(lowest[n].values))
    return name, int(lowest[name].indices)


def lost_for_good(net: TwoSensors, batches: list[Batch], gone: tuple[str, int]) -> float:
    """Return how far the fused feature moves at best once a channel is gone.

    The fusion's weights are refitted by least squares, which is the most that any training of them
    could bring back.
    """
    camera = torch.cat([batch[0][0] for batch in batches])
    lidar = torch.cat([batch[0][1] for batch in batches])
    with torch.no_grad():
        both = torch.cat((net.camera_branch(camera), net.lidar_branch(lidar)), dim=1)
        fused = net.fusion(both)
        column = gone[1] + (1 + N_OWN) * (gone[0] == "lidar_branch")
        left = both[:, torch.arange(both.shape[1]) != column]
        refitted = left @ torch.linalg.lstsq(left, fused).solution
        return float((refitted - fused).norm() / fused.norm())


@pytest.mark.parametrize("name", CRITERIA)
def test_what_both_sensors_carry_goes_first_and_the_fused_feature_survives(name: str) -> None:
    net, batches, scores = scored(CRITERIA[name])
    assert first_to_go(scores)[1] == 0
    assert lost_for_good(net, batches, first_to_go(scores)) < 1e-9


def test_crossprune_keeps_the_other_copy() -> None:
    _, _, scores = scored(CRITERIA["crossprune"])
    copies = [float(scores.total[branch][0]) for branch in ("camera_branch", "lidar_branch")]
    others = [float(scores.total[b][1:].min()) for b in ("camera_branch", "lidar_branch")]
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
        assert (scores.total[branch] >= 0).all()
        assert float(scores.total[branch].sum()) == pytest.approx(1.0)


def test_groups_belong_to_the_branch_that_makes_them() -> None:
    net, batches = planted()
    labels = modality_of_groups(coupled(net, batches), BRANCHES)
    assert labels == {"camera_branch": "camera", "lidar_branch": "lidar", "fusion": FUSION}


@pytest.mark.parametrize("name", CRITERIA)
def test_modalities_found_from_the_inputs_give_the_same_scores(name: str) -> None:
    _, _, declared = scored(CRITERIA[name])
    _, _, found = scored(replace(CRITERIA[name], modalities=None))
    for group, own in declared.total.items():
        assert torch.equal(own, found.total[group])


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
    assert scores.per_task["fusion"].shape == (2, 10)


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
    assert all(own.isfinite().all() for own in scores.total.values())


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
