"""The bundled nets go through the front door: exact at every ratio, and they train on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import taskprune
from taskprune.driving.batch import DrivingBatch
from taskprune.driving.data import RoadScenes, loader
from taskprune.driving.losses import detection_loss, drivable_loss, lane_loss
from taskprune.driving.nets import build_net
from taskprune.driving.tasks import driving_tasks, forward
from taskprune.driving.teacher import load_teacher
from taskprune.testing import randomise_

RATIOS = [0.327, 0.6]
WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def batches() -> list[DrivingBatch]:
    scenes = RoadScenes(4, seed=21, size=(WIDTH, HEIGHT))
    found = list(loader(scenes, batch_size=2, shuffle=False, seed=0))
    # Small images often show no vehicle: one in each batch gets a box.
    return [
        DrivingBatch(
            batch.images,
            boxes=(torch.tensor([[0.5, 0.6, 0.3, 0.2]]), torch.zeros(0, 4)),
            labels=(torch.tensor([0]), torch.tensor([], dtype=torch.long)),
            drivable=batch.drivable,
            lane=batch.lane,
        )
        for batch in found
    ]


def total_loss(net: nn.Module, batch: DrivingBatch) -> Tensor:
    outputs = net(batch.images, batch)
    losses = [loss(outputs, batch) for loss in (detection_loss, drivable_loss, lane_loss)]
    return torch.stack([loss for loss in losses if loss is not None]).sum()


def assert_trains(net: nn.Module, batch: DrivingBatch) -> None:
    """One step in training mode: denoising queries, auxiliary heads, gradients everywhere."""
    net.train()
    for module in net.modules():
        # One small image in a batch leaves single values per channel at the coarsest resolution.
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    loss = total_loss(net, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    assert bool(torch.isfinite(loss))
    optimizer.step()
    assert bool(torch.isfinite(total_loss(net, batch)))


def assert_exact(result: taskprune.PruneResult, ratio: float) -> None:
    assert ratio <= result.report.removed("params") <= ratio + 0.005
    verification = result.report.verification
    assert verification is not None
    assert verification.oracle == "masked"
    assert verification.max_relative_error <= (1e-9 if verification.dtype == "float64" else 1e-4)
    # The two parts of the detection output, and the two masks.
    assert len(verification.outputs) >= 4
    assert not result.report.untraced


@pytest.mark.slow
@pytest.mark.parametrize("ratio", RATIOS[-1:])
def test_the_large_net_prunes_exactly_and_trains_on(
    ratio: float, batches: list[DrivingBatch]
) -> None:
    torch.manual_seed(0)
    net = randomise_(build_net("l"), 0)
    result = taskprune.prune(
        net,
        driving_tasks(),
        ratio,
        example_inputs=batches[0],
        forward=forward,
        importance="magnitude",
    )
    assert_exact(result, ratio)
    assert_trains(result.model, batches[0])


@pytest.mark.slow
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_bundled_teacher_prunes_exactly_and_trains_on(
    ratio: float, batches: list[DrivingBatch]
) -> None:
    result = taskprune.prune(load_teacher(), driving_tasks(), ratio, data=batches, forward=forward)
    assert result.report.calibration_batches == 2
    assert result.scores.tasks == ("detection", "drivable", "lane")
    assert_exact(result, ratio)
    assert_trains(result.model, batches[0])
