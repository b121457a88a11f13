"""A tiny net and labelled images for the tests of nets and losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.nets import NetConfig, PanopticDrivingNet, StageConfig

TINY = NetConfig(
    stem=(8, 8),
    stages=(
        StageConfig(8, 16),
        StageConfig(8, 16),
        StageConfig(8, 24, kernel=5, n_blocks=2, light=True),
        StageConfig(8, 32, kernel=5, light=True),
    ),
    convs_per_block=2,
    hidden=16,
    attention_heads=2,
    encoder_ffn=24,
    rep_convs=1,
    decoder_layers=2,
    decoder_ffn=24,
    points=2,
    queries=12,
    denoising=6,
    segmentation=8,
)


def tiny_net(*, num_classes: int = 1) -> PanopticDrivingNet:
    torch.manual_seed(0)
    return PanopticDrivingNet(TINY, num_classes=num_classes)


@torch.no_grad()
def randomise_norms(net: nn.Module) -> None:
    """Give every batch norm statistics and an affine part that are not the identity."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0.0, 0.2)


def scenes(
    counts: tuple[int, ...] = (2, 0, 1), *, size: tuple[int, int] = (96, 64)
) -> DrivingBatch:
    """Images with coloured boxes, a road and a lane line; ``counts`` boxes, ``size`` is w, h."""
    generator = torch.Generator().manual_seed(1)
    width, height = size

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    images = 0.2 * random(len(counts), 3, height, width)
    drivable = torch.zeros(len(counts), height, width)
    drivable[:, height // 2 :, : width // 2] = 1.0
    lane = torch.zeros_like(drivable)
    lane[:, height // 2 :, width // 4 : width // 4 + 4] = 1.0
    images[:, 2] += 0.4 * drivable
    images[:, 1] += 0.4 * lane
    boxes = []
    for number, count in enumerate(counts):
        centre, extent = 0.3 + 0.4 * random(count, 2), 0.15 + 0.2 * random(count, 2)
        boxes.append(torch.cat((centre, extent), dim=1))
        pixels = torch.cat((centre - extent / 2, centre + extent / 2), dim=1)
        for x0, y0, x1, y1 in (
            (pixels * torch.tensor([width, height, width, height])).int().tolist()
        ):
            images[number, 0, y0:y1, x0:x1] = 1.0
    labels = tuple(torch.zeros(count, dtype=torch.long) for count in counts)
    return DrivingBatch(images, tuple(boxes), labels, drivable, lane)
