from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from distill_run import settings
from torch import Tensor, nn

import taskprune
from taskprune.calling.task import Task
from taskprune.distillation import (
    DistillResult,
    FeatureLoss,
    Tap,
    default_taps,
    distill,
    mse,
    pkd,
)
from taskprune.distillation.alignment import make_alignment


class Shared(nn.Module):
    """A trunk with two heads on the mean of its positions."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.one, self.two = nn.Linear(width, 4), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        features = features.flatten(2).mean(2) if features.dim() > 2 else features
        return {"one": self.one(features), "two": self.two(features)}


def mlp(width: int = 16) -> Shared:
    layers = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return Shared(layers, width)


def volumes(width: int = 8) -> Shared:
    layers = (nn.Conv3d(3, width, 3, padding=1), nn.ReLU(), nn.Conv3d(width, width, 1), nn.ReLU())
    return Shared(nn.Sequential(*layers), width)


def sequences(width: int = 8) -> Shared:
    layers = (nn.Conv1d(3, width, 3, padding=1), nn.BatchNorm1d(width), nn.ReLU())
    return Shared(nn.Sequential(*layers), width)


KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "vectors": (mlp, (8, 10)),
    "volumes": (volumes, (2, 3, 4, 4, 4)),
    "sequences": (sequences, (4, 3, 8)),
}
TASKS = {
    "one": Task(lambda outputs, _: outputs["one"].square().mean(), outputs="one"),
    "two": Task(lambda outputs, _: (outputs["two"] - 1).square().mean(), outputs="two"),
}


def batches(kind: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(KINDS[kind][1], generator=generator) for _ in range(3)]


def go(kind: str, student: nn.Module, **changes: Any) -> DistillResult:
    loss = changes.pop("loss", pkd)
    arguments: dict[str, Any] = {
        "tasks": TASKS,
        "data": batches(kind),
        "settings": settings(2, feature_loss=loss),
        **changes,
    }
    return distill(student, KINDS[kind][0](), **arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", [mse, pkd])
def test_shared_features_are_compared(kind: str, loss: FeatureLoss) -> None:
    result = go(kind, KINDS[kind][0](), loss=loss)
    axis = 1 if kind == "sequences" else None
    assert result.taps == (Tap("trunk", channel_dim=axis),)
    assert result.history[0].features["trunk"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_narrower_features_get_an_adapter(kind: str) -> None:
    result = go(kind, KINDS[kind][0](5), taps=["trunk", "trunk.0"])
    assert all(loss > 0 for loss in result.history[0].features.values())


@pytest.mark.parametrize("kind", KINDS)
def test_such_nets_are_compressed(kind: str) -> None:
    result = taskprune.compress(
        KINDS[kind][0](), TASKS, 0.3, data=batches(kind), steps=1, settings=settings(2)
    )
    assert result.points[-1].params < result.points[0].params


def test_compress_compares_the_taps_it_is_given() -> None:
    seen: list[torch.Size] = []

    def spy(student: Tensor, teacher: Tensor) -> Tensor:
        seen.append(student.shape)
        return mse(student, teacher)

    arguments: dict[str, Any] = {"data": batches("vectors"), "steps": 1}
    chosen = settings(1, feature_loss=spy)
    taskprune.compress(mlp(), TASKS, 0.3, taps="trunk.?", settings=chosen, **arguments)
    assert len(seen) == 4


def test_volumes_are_resized_to_the_teachers() -> None:
    student, teacher = torch.rand(2, 3, 2, 2, 2), torch.rand(2, 3, 4, 4, 4)
    resized, _ = make_alignment(Tap("layer"), student, teacher)(student, teacher)
    assert resized.shape == teacher.shape


def test_sequences_as_long_as_wide_are_aligned_by_channel() -> None:
    """Pruned to as many channels as positions, the map would fit the other axis as well."""
    teacher = sequences(12)
    pruned = taskprune.prune(teacher, TASKS, 0.3, data=batches("sequences"))
    kept = {entry.name: entry.keep for entry in pruned.plan.activations}["trunk"]
    data = [torch.rand(4, 3, len(kept)) for _ in range(2)]
    shapes: list[torch.Size] = []

    def spy(student: Tensor, teacher: Tensor) -> Tensor:
        shapes.append(teacher.shape)
        return mse(student, teacher)

    run = settings(1, feature_loss=spy)
    arguments: dict[str, Any] = {"tasks": TASKS, "data": data, "settings": run}
    taskprune.distill(pruned.model, teacher=teacher, plan=pruned.plan, taps=["trunk"], **arguments)
    assert shapes == [torch.Size((4, len(kept), len(kept)))]


def test_vectors_are_taken_only_where_nothing_has_positions() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.vector = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.vector(self.map(x).mean((2, 3))))  # type: ignore[no-any-return]

    assert default_taps(Pooled(), torch.rand(2, 3, 4, 4)) == (Tap("map"),)


def test_tasks_that_share_nothing_are_trained_without_features(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(10, 4), nn.Linear(10, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"one": self.one(x), "two": self.two(x)}

    with caplog.at_level(logging.WARNING, "taskprune"):
        result = distill(
            Apart(), Apart(), tasks=TASKS, data=batches("vectors"), settings=settings(2)
        )
    assert result.taps == ()
    assert not result.history[0].features
    assert "trained without features" in caplog.text


def test_models_with_channels_on_other_axes_are_aligned() -> None:
    student, teacher = torch.rand(2, 3, 4, 5), torch.rand(2, 4, 5, 7)
    alignment = make_alignment(Tap("layer"), student, teacher, axes=(None, 3))
    adapted, target = alignment(student, teacher)
    assert adapted.shape == target.shape == (2, 7, 4, 5)
