from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from nets_samples import scenes, tiny_net
from torch import nn

from taskprune.coupling import CouplingGroups, couple
from taskprune.driving.batch import DrivingBatch
from taskprune.driving.losses import detection_loss, drivable_loss, lane_loss
from taskprune.driving.nets import PanopticDrivingNet
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.rewrite import apply_plan
from taskprune.testing import assert_masked_equals_pruned, random_drop, randomise_

N_COORDINATES = 4
TASKS = {"detection": "detection", "drivable": "drivable", "lane": "lane"}


def forward(net: nn.Module, batch: DrivingBatch) -> Any:
    return net(batch.images, batch)


@pytest.fixture(scope="module")
def groups() -> CouplingGroups:
    """The couplings of both modes together."""
    graph = trace(tiny_net(), scenes((2, 1)), forward=forward, tasks=TASKS, modes="both")
    assert not graph.used_real_tensors
    return couple(graph, strict=True)


def test_only_colours_classes_coordinates_and_scale_weights_are_frozen(
    groups: CouplingGroups,
) -> None:
    """All of these are at most as long as a box; every channel dim of the net is longer."""
    frozen = {
        (member.name, member.dim)
        for group in groups.frozen
        for member in group.members
        if groups.shapes[member.name][member.dim] > N_COORDINATES
    }
    assert frozen == set()
    assert groups.untraced == ()


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("backbone.stem.first.conv", {"detection", "drivable", "lane"}),
        ("project.0.conv", {"detection", "drivable", "lane"}),
        ("detection_gates.0.adapter.reduce.conv", {"detection"}),
        ("segmentation_gates.0.adapter.reduce.conv", {"drivable", "lane"}),
        ("segmentation.project.0", {"drivable", "lane"}),
    ],
)
def test_channels_know_which_tasks_they_serve(
    groups: CouplingGroups, name: str, tasks: set[str]
) -> None:
    assert groups[name].tasks == tasks


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_pruning_equals_masking(groups: CouplingGroups, ratio: float) -> None:
    net, batch = randomise_(tiny_net(), 0).double().eval(), scenes((2, 1))
    plan = build_plan(groups, random_drop(groups, ratio, seed=3))
    report = assert_masked_equals_pruned(
        net, plan, replace(batch, images=batch.images.double()), forward=forward, groups=groups
    )
    assert report.max_relative_error < 1e-9


def test_a_pruned_net_trains(groups: CouplingGroups) -> None:
    plan = build_plan(groups, random_drop(groups, 0.5, seed=4))
    small = apply_plan(randomise_(tiny_net(), 0), plan)
    assert isinstance(small, PanopticDrivingNet)
    batch = scenes((2, 1))
    outputs = small.train()(batch.images, batch)
    losses = [loss(outputs, batch) for loss in (detection_loss, drivable_loss, lane_loss)]
    total = torch.stack([loss for loss in losses if loss is not None]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in small.parameters())
