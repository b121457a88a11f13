"""Budgets of single modalities: exact, independent of each other, and joined with those of all."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from synthetic_groups import scores_from
from torch import Tensor, nn

from taskprune import Budget, ChannelScores, CouplingGroups, Modality, Safety
from taskprune.calling.modality import FUSION
from taskprune.cost import count_macs, count_params, modality_costs
from taskprune.coupling import couple, labelled, modality_of_tensors
from taskprune.errors import InfeasibleBudgetError, InputError
from taskprune.graph import trace
from taskprune.solver import solve

FREE = Safety(min_channels=1, max_removed=1.0, protected_quantile=1.0)
SENSORS = (Modality("camera", inputs="images"), Modality("lidar", inputs="points"))


class Sensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1)
        )
        self.lidar = nn.Sequential(nn.Conv2d(2, 20, 1), nn.ReLU(), nn.Conv2d(20, 12, 1))
        self.fusion = nn.Conv2d(28, 20, 1)
        self.head = nn.Conv2d(20, 2, 1)

    def forward(self, images: Tensor, points: Tensor) -> Tensor:
        both = torch.cat((self.camera(images), self.lidar(points)), 1)
        out: Tensor = self.head(self.fusion(both).relu())
        return out


@pytest.fixture
def groups() -> CouplingGroups:
    inputs = torch.rand(2, 3, 6, 6), torch.rand(2, 2, 6, 6)
    return labelled(couple(trace(Sensors(), inputs, tasks={"task": "output"})), SENSORS)


@pytest.fixture
def scores(groups: CouplingGroups) -> ChannelScores:
    g = torch.Generator().manual_seed(0)
    return scores_from(
        {x.name: torch.rand(x.n_channels, generator=g, dtype=torch.float64) for x in groups}
    )


def params_of(groups: CouplingGroups, shapes: Any, modality: str) -> int:
    labels = modality_of_tensors(groups)
    return sum(math.prod(shapes[n]) for n in groups.parameter_names if labels[n] == modality)


def test_modalities_and_fusion_add_up_to_the_whole(groups: CouplingGroups) -> None:
    g = torch.Generator().manual_seed(1)
    kept = {x.name: int(torch.randint(1, x.n_channels + 1, (), generator=g)) for x in groups}
    for cost, whole in (("params", count_params), ("macs", count_macs)):
        names = [f"{cost} of {label}" for label in ("camera", "lidar", FUSION)]
        parts = modality_costs(groups, names)
        assert sum(part.value(kept) for part in parts.values()) == whole(groups, kept)


@pytest.mark.parametrize("fractions", [{"camera": 0.5, "lidar": 0.8}, {"lidar": 0.4}])
def test_each_bound_is_met_by_its_own_modality_alone(
    groups: CouplingGroups, scores: ChannelScores, fractions: dict[str, float]
) -> None:
    budget = Budget(modalities={name: Budget(params=x) for name, x in fractions.items()})
    plan = solve(groups, scores, budget, safety=FREE)
    for label in ("camera", "lidar", FUSION):
        before = params_of(groups, plan.shapes, label)
        after = params_of(groups, plan.pruned_shapes, label)
        if label in fractions:
            assert plan.costs[f"params of {label}"] == (before, after)
            assert fractions[label] - 0.15 < after / before <= fractions[label]
        elif label != FUSION:  # what the fusion reads shrinks with the branches
            assert after == before


def test_the_fusion_may_give_up_features_of_the_branches_that_it_reads(
    groups: CouplingGroups, scores: ChannelScores
) -> None:
    plan = solve(groups, scores, Budget(modalities={FUSION: Budget(params=0.5)}), safety=FREE)
    before, after = plan.costs["params of fusion"]
    assert 0.4 < after / before <= 0.5
    assert after == params_of(groups, plan.pruned_shapes, FUSION)
    # What no weight of the fusion reads saves it nothing.
    assert set(plan.drop) <= {"camera.2", "lidar.2", "fusion"}


def test_two_modalities_lose_what_each_would_lose_alone(
    groups: CouplingGroups, scores: ChannelScores
) -> None:
    def kept(**fractions: float) -> dict[str, int]:
        own = {name: Budget(params=fraction) for name, fraction in fractions.items()}
        return solve(groups, scores, Budget(modalities=own), safety=FREE).kept

    together, camera, lidar = kept(camera=0.5, lidar=0.7), kept(camera=0.5), kept(lidar=0.7)
    for name, n_kept in together.items():
        alone = min(camera[name], lidar[name])
        assert abs(n_kept - alone) <= 1, name  # which channel fits last depends on the search


def test_a_joint_bound_holds_beside_them(groups: CouplingGroups, scores: ChannelScores) -> None:
    alone = solve(groups, scores, Budget(params=0.6), safety=FREE)
    camera = alone.costs["params"][0]
    loose = Budget(params=0.6, modalities={"camera": Budget(params=1.0)})
    assert solve(groups, scores, loose, safety=FREE).drop == alone.drop
    tight = Budget(params=0.6, modalities={"lidar": Budget(params=0.3, macs=0.4)})
    plan = solve(groups, scores, tight, safety=FREE)
    left = {name: after / before for name, (before, after) in plan.costs.items()}
    assert 0.55 < left["params"] <= 0.6
    assert left["params of lidar"] <= 0.3
    assert left["macs of lidar"] <= 0.4
    assert camera == count_params(groups)


def test_absolute_multiply_adds_are_of_one_sample(
    groups: CouplingGroups, scores: ChannelScores
) -> None:
    (lidar,) = modality_costs(groups, ["macs of lidar"]).values()
    one = lidar.value() // groups.batch_size
    budget = Budget(modalities={"lidar": Budget(macs=one // 2)})
    plan = solve(groups, scores, budget, safety=FREE)
    assert plan.costs["macs of lidar"][1] <= one // 2 * groups.batch_size


def test_what_cannot_be_met_is_named(groups: CouplingGroups, scores: ChannelScores) -> None:
    budget = Budget(modalities={"camera": Budget(params=0.01)})
    with pytest.raises(InfeasibleBudgetError, match="parameters of camera"):
        solve(groups, scores, budget)


def test_modalities_that_are_not_there_are_named(
    groups: CouplingGroups, scores: ChannelScores
) -> None:
    budget = Budget(modalities={"radar": Budget(params=0.5)})
    with pytest.raises(InputError, match=r"`radar`\. Found camera, lidar, fusion"):
        solve(groups, scores, budget)


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"camera": Budget(latency_ms=0.5)}, "latency for `camera`"),
        ({"camera": 0.5}, "a `Budget` by name"),
        (0.5, "bounds by modality"),
        ({"camera": Budget(modalities={"left": Budget(params=0.5)})}, "of left for `camera`"),
    ],
)
def test_bounds_that_mean_nothing_are_refused(modalities: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Budget(modalities=modalities)


def test_a_budget_says_what_it_bounds() -> None:
    budget = Budget(params=0.7, modalities={"camera": Budget(params=0.5)})
    assert str(budget) == "70 % of the parameters and 50 % of the parameters of camera"
