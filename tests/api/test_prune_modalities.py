"""Modalities at the front door: budgets, criteria, report and plan all know them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from front_nets import settled
from torch import Tensor, nn

import taskprune
from taskprune import Budget, Modality, PruningPlan, Task
from taskprune.errors import InputError
from taskprune.importance import AlterMomaImportance, difference

SENSORS = (Modality("camera", inputs="images"), Modality("lidar", inputs="points"))


class Sensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.lidar = nn.Sequential(nn.Conv2d(2, 16, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.fusion = nn.Conv2d(32, 24, 1)
        self.head = nn.Conv2d(24, 1, 1)

    def forward(self, images: Tensor, points: Tensor) -> Tensor:
        both = torch.cat((self.camera(images), self.lidar(points)), 1)
        out: Tensor = self.head(self.fusion(both).relu())
        return out


TASKS = {"depth": Task(lambda out, batch: (out - batch[1]).square().mean(), outputs="output")}


def batches() -> list[Any]:
    g = torch.Generator().manual_seed(0)
    return [
        (
            (torch.rand(2, 3, 5, 5, generator=g), torch.rand(2, 2, 5, 5, generator=g)),
            torch.rand(2, 1, 5, 5, generator=g),
        )
        for _ in range(3)
    ]


def pruned(**settings: Any) -> taskprune.PruneResult:
    torch.manual_seed(0)
    return taskprune.prune(Sensors(), TASKS, data=batches(), **settled(settings))


BUDGET = Budget(params=0.8, modalities={"camera": Budget(params=0.5), "lidar": Budget(params=0.7)})


@pytest.mark.parametrize("steps", [1, 2])
def test_budgets_of_modalities_hold_in_the_pruned_model(steps: int) -> None:
    result = pruned(budget=BUDGET, modalities=SENSORS, steps=steps)
    size = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in result.model.named_children()
    }
    assert size["camera"] <= 0.5 * (16 * 27 + 16 * 3)
    assert size["lidar"] <= 0.7 * (16 * 2 + 16 * 3)
    assert result.report.costs["params of camera"][1] == size["camera"]
    assert {line.modality: line.params[1] for line in result.report.modalities} == {
        "camera": size["camera"],
        "lidar": size["lidar"],
        "fusion": size["fusion"] + size["head"],
    }


def test_the_report_and_the_plan_show_them() -> None:
    result = pruned(budget=BUDGET, modalities=SENSORS)
    text = str(result)
    assert "Channels by modality" in text
    assert "parameters of camera" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    assert json.loads(result.report.to_json())["modalities"][0]["modality"] == "camera"
    assert "16 channels of camera go" in str(result.plan.explain("camera.0"))
    assert "lidar" in str(result.plan)
    again = PruningPlan.from_json(result.plan.to_json())
    assert [d.modality for d in again.groups] == ["camera", "lidar", "fusion"]


def test_a_plan_without_modalities_shows_none() -> None:
    result = pruned(ratio=0.3)
    assert result.report.modalities == ()
    assert "modality" not in str(result)
    assert "modality" not in str(result.plan)


def test_criteria_use_the_modalities_of_the_front_door() -> None:
    declared = pruned(ratio=0.3, importance=AlterMomaImportance(SENSORS))
    given = pruned(ratio=0.3, importance=AlterMomaImportance(), modalities=SENSORS)
    assert given.plan.drop == declared.plan.drop


def test_scores_below_zero_leave_shares_between_none_and_all() -> None:
    published = AlterMomaImportance(combine=difference)
    result = pruned(ratio=0.4, importance=published, modalities=SENSORS)
    assert min(float(own.total.min()) for own in result.scores.groups.values()) < 0
    assert all(0 <= line.importance_removed <= 1 for line in result.report.tasks)
    for why in result.plan.rationale:
        assert all(0 <= share.dropped <= share.total for share in why.shares)


def test_modalities_may_be_found_from_the_inputs() -> None:
    budget = Budget(modalities={"images": Budget(params=0.6)})
    result = pruned(budget=budget)
    assert result.report.modalities == pruned(budget=budget, modalities="inputs").report.modalities
    assert [line.modality for line in result.report.modalities] == ["images", "points", "fusion"]


@pytest.mark.parametrize("modalities", ["camera", ["camera"], Modality("a", "b")])
def test_other_things_are_refused_before_anything_runs(modalities: Any) -> None:
    with pytest.raises(InputError, match="must be a list such as"):
        pruned(ratio=0.3, modalities=modalities)


def test_they_need_a_model_that_has_them() -> None:
    with pytest.raises(InputError, match="no such module"):
        pruned(ratio=0.3, modalities=[Modality("a", "camera"), Modality("b", "radar")])
