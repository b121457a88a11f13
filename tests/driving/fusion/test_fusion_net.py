"""The fusion net uses both sensors, learns, and prunes exactly."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import taskprune
from taskprune.driving.fusion import (
    BevGrid,
    FusionBatch,
    FusionNet,
    TwoSensorScenes,
    build_fusion_net,
    collate_frames,
    fusion_forward,
    fusion_tasks,
)
from taskprune.driving.fusion.net import SCALES
from taskprune.errors import InputError
from taskprune.testing import randomise_

GRID = BevGrid(cell=3.0)


def small() -> FusionNet:
    torch.manual_seed(0)
    return FusionNet(dataclasses.replace(SCALES["n"], grid=GRID))


def batch(n: int = 2) -> FusionBatch:
    scenes = TwoSensorScenes(n, seed=0, size=(96, 32), grid=GRID)
    return collate_frames([scenes[i] for i in range(n)], n_points=512, grid=GRID)


def test_outputs_lie_on_the_grid() -> None:
    given = batch()
    outputs = small()(given.images, given.points, given.projection)
    assert outputs["detection"]["heat"].shape == (2, 2, *GRID.shape)
    assert outputs["detection"]["box"].shape == (2, 8, *GRID.shape)
    assert outputs["drivable"].shape == (2, *GRID.shape)


@pytest.mark.parametrize("sensor", ["images", "points", "projection"])
def test_every_input_matters(sensor: str) -> None:
    net, given = randomise_(small().eval(), seed=0), batch()
    # Projections are homogeneous: a common factor would change nothing.
    factor = torch.tensor([0.7, 0.8, 1.0]).view(-1, 1) if sensor == "projection" else 0.7
    changed = dataclasses.replace(given, **{sensor: getattr(given, sensor) * factor})
    before, after = fusion_forward(net, given), fusion_forward(net, changed)
    assert not torch.allclose(before["drivable"], after["drivable"])


def test_points_outside_of_the_grid_change_nothing() -> None:
    net, given = small().eval(), batch()
    more = torch.cat((given.points, torch.full((2, 50, 4), -500.0)), dim=1)
    moved = dataclasses.replace(given, points=more)
    torch.testing.assert_close(
        fusion_forward(net, given)["drivable"], fusion_forward(net, moved)["drivable"]
    )


def test_a_few_steps_lower_both_losses() -> None:
    net, given, tasks = small(), batch(), fusion_tasks(GRID)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    history = []
    for _ in range(25):
        outputs = fusion_forward(net, given)
        losses = [task.loss(outputs, given) for task in tasks.values()]
        values = [loss for loss in losses if loss is not None]
        history.append([loss.item() for loss in values])
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(values).sum())
        optimizer.step()
    assert all(last < 0.7 * first for first, last in zip(history[0], history[-1], strict=True))


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_pruned_equals_masked_and_both_branches_shrink(ratio: float) -> None:
    net = randomise_(small().eval(), seed=0)
    result = taskprune.prune(
        net,
        fusion_tasks(GRID),
        ratio,
        data=[batch()],
        forward=fusion_forward,
        settings=taskprune.PruneSettings(strict=True),
    )
    assert result.report.verification is not None
    removed = {kept.name.split(".")[0] for kept in result.plan.tensors}
    assert {"camera_branch", "lidar_branch", "fusion"} <= removed


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(InputError, match="'n'"):
        build_fusion_net("xl")
