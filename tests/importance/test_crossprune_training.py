"""CrossPrune as part of training: a copy goes to zero, the other sensor's takes over."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_sensors import BRANCHES, TASKS, Batch, TwoSensors, coupled, planted
from torch import Tensor, nn

import taskprune
from taskprune import Budget, Modality, PruneSettings
from taskprune.coupling import couple
from taskprune.distillation import DistillSettings, StepRecord, distill
from taskprune.errors import InputError
from taskprune.graph import trace
from taskprune.importance import CrossPruneRegulariser, distortion

STEPS = 120


def tokens(batches: list[Batch]) -> list[Batch]:
    """Feature losses take maps or tokens: ``[B, N, C]``."""
    return [
        ((camera.reshape(8, 4, -1), lidar.reshape(8, 4, -1)), target.reshape(8, 4, 1))
        for (camera, lidar), target in batches
    ]


def settings(regulariser: CrossPruneRegulariser, **changes: Any) -> DistillSettings:
    arguments: dict[str, Any] = {
        "steps": STEPS,
        "learning_rate": 1e-2,
        "cpu": True,
        "feature_loss": distortion,
        "regularisers": (regulariser,),
    }
    return DistillSettings(**{**arguments, **changes})


def trained(given: DistillSettings) -> TwoSensors:
    net, batches = planted()
    student = copy.deepcopy(net)
    distill(student, net, tasks=TASKS, data=tokens(batches), taps=["fusion"], settings=given)
    return student


def sparse_camera(**changes: Any) -> CrossPruneRegulariser:
    net, batches = planted()
    arguments: dict[str, Any] = {"removed": {"camera": 0.25}, "modalities": BRANCHES, **changes}
    return CrossPruneRegulariser(coupled(net, batches), **arguments)


def strength(net: TwoSensors) -> tuple[Tensor, Tensor]:
    """Return the norms of what makes and reads each channel of both branches."""
    read = net.fusion.weight.detach().norm(dim=0).split(4)
    camera, lidar = (b.weight.detach().norm(dim=1) for b in (net.camera_branch, net.lidar_branch))
    return camera * read[0], lidar * read[1]


def fused(net: nn.Module, batches: list[Batch]) -> Tensor:
    heard: list[Tensor] = []
    handle = net.get_submodule("fusion").register_forward_hook(lambda *a: heard.append(a[2]))
    with torch.no_grad():
        for batch in batches:
            net(*batch[0])
    handle.remove()
    return torch.cat(heard)


@pytest.fixture(scope="module")
def student() -> TwoSensors:
    return trained(settings(sparse_camera()))


def test_the_redundant_copy_goes_to_zero_and_the_other_takes_over(student: TwoSensors) -> None:
    net, _ = planted()
    before, after = strength(net), strength(student)
    left = after[0] / before[0]
    assert float(left[0]) < 1e-3
    assert float(left[1:].min()) > 0.4
    assert float(after[1][0] / before[1][0]) > 1.4


def test_pruning_what_is_zero_moves_the_fused_feature_by_nothing(student: TwoSensors) -> None:
    net, batches = planted()
    result = taskprune.prune(
        student,
        TASKS,
        data=batches,
        importance="magnitude",
        settings=PruneSettings(modalities=BRANCHES),
        budget=Budget(modalities={"camera": Budget(params=0.75)}),
        safety=taskprune.Safety(min_channels=1),
    )
    assert result.plan.drop == {"camera_branch": (0,)}
    trained_feature = fused(student, batches)
    assert float(distortion(fused(result.model, batches), trained_feature)) < 1e-6
    # One of two copies is gone, and what the fusion hears is nearly what it was.
    assert float(distortion(fused(result.model, batches), fused(net, batches))) < 0.02


class Stop(Exception):  # noqa: N818 - a signal, not a failure
    pass


@pytest.mark.parametrize("at", [7, 15, 40, 95])
def test_an_interrupted_run_goes_on_exactly(student: TwoSensors, tmp_path: Path, at: int) -> None:
    def stop(record: StepRecord, _: nn.Module) -> None:
        if record.step == at:
            raise Stop

    kept = {"directory": tmp_path, "checkpoint_every": 5}
    with pytest.raises(Stop):
        trained(settings(sparse_camera(), callbacks=(stop,), **kept))
    resumed = trained(settings(sparse_camera(), **kept))
    for name, value in student.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_settings_serve_several_runs(student: TwoSensors) -> None:
    given = settings(sparse_camera())
    for _ in range(2):
        again = trained(given)
        for name, value in student.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])


def test_a_run_with_another_sparsity_is_another_run(tmp_path: Path) -> None:
    trained(settings(sparse_camera(), directory=tmp_path, steps=8))
    with pytest.raises(taskprune.TaskPruneError, match="`regularisers` was"):
        trained(settings(sparse_camera(rho=0.2), directory=tmp_path, steps=8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"removed": 1.5}, "between 0 and 1"),
        ({"removed": {"radar": 0.5}}, "names {'radar'}"),
        ({"removed": 0.01}, "less than one channel"),
        ({"rho": 0.0}, "`rho` must lie"),
        ({"modalities": (BRANCHES[0], Modality("b", "radar"))}, "no such module"),
    ],
)
def test_what_cannot_be_driven_to_zero_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained(settings(sparse_camera(**changes), steps=8))


def test_a_run_too_short_for_the_turns_is_refused() -> None:
    with pytest.raises(InputError, match="Train for longer"):
        trained(settings(sparse_camera(), steps=3))


def test_modules_that_pruning_replaces_are_named() -> None:
    net = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    groups = couple(trace(net, torch.rand(1, 3, 8)))
    with pytest.raises(InputError, match="`self_attn` replaced"):
        CrossPruneRegulariser(groups).for_student(net, 100)
