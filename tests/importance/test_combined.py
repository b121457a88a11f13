"""Criteria combined: what no task needs goes, and what both sensors carry, in one plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import taskprune
from taskprune import Budget, Evidence, Modality, PruneSettings, Safety, Task
from taskprune.coupling import CouplingGroups, couple
from taskprune.errors import InputError
from taskprune.graph import trace
from taskprune.importance import (
    AlterMomaImportance,
    CombinedImportance,
    Importance,
    MagnitudeImportance,
    TaskTaylorImportance,
    difference,
    score,
)

SENSORS = (Modality("camera", inputs="camera"), Modality("lidar", inputs="lidar"))
N_OWN, COPY, IDLE = 3, 0, 4
ALTERMOMA = AlterMomaImportance(learning_rate=3e-2, combine=difference)


class TwoSensorsTwoTasks(nn.Module):
    """Channel 0 of both branches is one feature; the camera's last hardly reaches any task."""

    def __init__(self) -> None:
        super().__init__()
        self.camera_branch = nn.Linear(5, 5, bias=False)
        self.lidar_branch = nn.Linear(4, 4, bias=False)
        self.fusion = nn.Linear(9, 10, bias=False)
        self.near = nn.Linear(10, 1, bias=False)
        self.far = nn.Linear(10, 1, bias=False)

    def forward(self, camera: Tensor, lidar: Tensor) -> dict[str, Tensor]:
        both = torch.cat((self.camera_branch(camera), self.lidar_branch(lidar)), -1)
        fused = self.fusion(both)
        return {"near": self.near(fused), "far": self.far(fused)}


def planted(seed: int) -> tuple[TwoSensorsTwoTasks, list[Any]]:
    g = torch.Generator().manual_seed(seed)
    draw: Callable[..., Tensor] = partial(torch.randn, generator=g, dtype=torch.float64)
    net = TwoSensorsTwoTasks().double()
    with torch.no_grad():
        net.camera_branch.weight.copy_(torch.eye(5))
        net.lidar_branch.weight.copy_(torch.eye(4))
        net.fusion.weight.copy_(draw(10, 9) / 3)
        net.fusion.weight[:, COPY] *= 3
        net.fusion.weight[:, 5 + COPY] = net.fusion.weight[:, COPY]
        net.fusion.weight[:, IDLE] *= 0.05
        for head in (net.near, net.far):
            head.weight.copy_(draw(1, 10) / 3)
    batches: list[Any] = []
    for _ in range(12):
        camera, lidar = draw(32, 5), draw(32, 4)
        lidar[:, COPY] = camera[:, COPY]
        with torch.no_grad():
            targets = {name: out + 0.3 * draw(32, 1) for name, out in net(camera, lidar).items()}
        batches.append(((camera, lidar), targets))
    return net, batches


def squared(name: str, outputs: Any, batch: Any) -> Tensor:
    loss: Tensor = (outputs[name] - batch[1][name]).square().mean()
    return loss


TASKS = {name: Task(partial(squared, name), outputs=name) for name in ("near", "far")}


def dropped(net: nn.Module, batches: list[Any], importance: Importance) -> set[int]:
    """Let the camera give up two channels; return which."""
    result = taskprune.prune(
        net,
        TASKS,
        data=batches,
        importance=importance,
        settings=PruneSettings(modalities=SENSORS),
        budget=Budget(modalities={"camera": Budget(params=0.6)}),
        safety=Safety(min_channels=1, max_removed=1.0, protected_quantile=1.0),
    )
    assert set(result.plan.drop) == {"camera_branch"}
    return set(result.plan.drop["camera_branch"])


def rises(net: TwoSensorsTwoTasks, batches: list[Any], gone: set[int]) -> list[float]:
    """Return by which fraction each task's loss rises once the readers have been refitted."""
    camera, lidar = (torch.cat([batch[0][i] for batch in batches]) for i in (0, 1))
    both = torch.cat((camera, lidar), 1)
    kept = both[:, [c for c in range(both.shape[1]) if c not in gone]]

    def best(features: Tensor, name: str) -> float:
        target = torch.cat([batch[1][name] for batch in batches])
        fitted = features @ torch.linalg.lstsq(features, target).solution
        return float((fitted - target).square().mean())

    return [best(kept, name) / best(both[:, 1:], name) - 1 for name in TASKS]


@pytest.mark.parametrize("seed", [1, 5])
def test_both_kinds_of_redundancy_go_and_no_task_suffers(seed: int) -> None:
    net, batches = planted(seed)
    combined = CombinedImportance((TaskTaylorImportance(), ALTERMOMA), (1.0, 2.0))
    gone = dropped(net, batches, combined)
    assert gone == {COPY, IDLE}
    assert max(rises(net, batches, gone)) < 0.02
    by_tasks = dropped(net, batches, TaskTaylorImportance())
    assert COPY not in by_tasks
    assert max(rises(net, batches, by_tasks)) > 0.5


def coupled(net: nn.Module, batches: list[Any]) -> CouplingGroups:
    return couple(trace(net, batches[0][0], tasks={name: name for name in TASKS}))


def test_scores_are_added_up_on_the_scale_of_their_means() -> None:
    net, batches = planted(0)
    groups = coupled(net, batches)
    parts: list[Importance] = [TaskTaylorImportance(), MagnitudeImportance()]
    found = score(net, groups, TASKS, batches, importance=CombinedImportance(tuple(parts), (3, 1)))
    alone = [score(net, groups, TASKS, batches, importance=part) for part in parts]
    means = [torch.cat([x.abs() for x in own.total.values()]).mean() for own in alone]
    for name, total in found.total.items():
        expected = 3 * alone[0].total[name] / means[0] + alone[1].total[name] / means[1]
        assert torch.allclose(total, expected)
        rows = 3 * alone[0].per_task[name] / means[0] + alone[1].per_task[name] / means[1]
        assert torch.allclose(found.per_task[name], rows)
        assert torch.allclose(found.conflict[name], 3 * alone[0].conflict[name] / means[0])
        assert torch.equal(found.loss_increase[name], alone[0].loss_increase[name])
    assert found.tasks == ("near", "far")
    assert found.criterion == "task_taylor + magnitude"


def test_batches_that_can_be_gone_through_once_suffice() -> None:
    net, batches = planted(0)
    groups = coupled(net, batches)
    twice = CombinedImportance((TaskTaylorImportance(), TaskTaylorImportance()))
    once = score(net, groups, TASKS, iter(batches), importance=twice)
    assert once.n_batches == len(batches)


def plain(_: nn.Module, groups: CouplingGroups, __: Evidence) -> dict[str, Tensor]:
    return {group.name: torch.ones(group.n_channels) for group in groups}


def renamed(model: nn.Module, groups: CouplingGroups, evidence: Evidence) -> Any:
    return replace(TaskTaylorImportance()(model, groups, evidence), tasks=("one", "other"))


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ((TaskTaylorImportance(), plain), "return `ChannelScores`"),
        ((TaskTaylorImportance(), renamed), "scores of the same tasks"),
    ],
)
def test_criteria_that_do_not_add_up_are_refused(
    criteria: tuple[Importance, ...], message: str
) -> None:
    net, batches = planted(0)
    with pytest.raises(InputError, match=message):
        score(net, coupled(net, batches), TASKS, batches, importance=CombinedImportance(criteria))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0)])
def test_each_criterion_has_a_positive_weight(weights: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="positive number for each"):
        CombinedImportance((plain, plain), weights)


def test_one_criterion_is_no_combination() -> None:
    with pytest.raises(InputError, match="at least two"):
        CombinedImportance((plain,))
