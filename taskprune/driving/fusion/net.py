"""The bundled camera-LiDAR network: two branches, one fused map of the ground, two tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.driving.fusion.camera import CameraBranch, GroundView
from taskprune.driving.fusion.frame import CLASSES
from taskprune.driving.fusion.grid import BevGrid
from taskprune.driving.fusion.pillars import LidarBranch
from taskprune.driving.nets.conv import ConvUnit
from taskprune.errors import InputError

BOX_CODE = 8
"""Offset in the cell (2), height, logs of length, width and height, sine and cosine of twice the
yaw."""

HEAT_PRIOR = -4.0
"""First answer of every cell: few hold the centre of an object."""


@dataclass(frozen=True)
class FusionConfig:
    """Everything that sets the size of a :class:`FusionNet`.

    Attributes:
        grid: The map of the ground.
        camera: Widths of the camera backbone: stem, then stages.
        camera_depth: Residual blocks per stage.
        camera_out: Width of the picture's features.
        heights: Where features are looked up above the ground, in metres of the LiDAR frame.
        lidar: Widths of the pillars and of the LiDAR backbone's stages.
        lidar_depth: Convolutions per stage.
        lidar_out: Width that each stage brings to the LiDAR map.
        fused: Width of the fused encoder.
        fused_depth: Its convolutions.
        head: Inner width of the heads.
    """

    grid: BevGrid
    camera: tuple[int, ...]
    camera_depth: int
    camera_out: int
    heights: tuple[float, ...]
    lidar: tuple[int, int, int]
    lidar_depth: int
    lidar_out: int
    fused: int
    fused_depth: int
    head: int


SCALES = {
    "n": FusionConfig(
        grid=BevGrid(),
        camera=(16, 24, 48, 80),
        camera_depth=1,
        camera_out=24,
        heights=(-1.7, -0.9, 0.0),
        lidar=(24, 40, 64),
        lidar_depth=2,
        lidar_out=24,
        fused=64,
        fused_depth=3,
        head=32,
    ),
    "l": FusionConfig(
        grid=BevGrid(cell=0.25),
        camera=(64, 128, 256, 512),
        camera_depth=3,
        camera_out=128,
        heights=(-1.7, -1.2, -0.7, -0.2, 0.3),
        lidar=(64, 128, 256),
        lidar_depth=5,
        lidar_out=128,
        fused=256,
        fused_depth=5,
        head=64,
    ),
}
"""``n`` trains on a CPU in minutes; ``l`` has the widths of published detectors."""


class FusionNet(nn.Module):
    """Detects objects in 3D and the drivable ground from a picture and a point cloud.

    ``camera_branch`` with ``ground_view`` and ``lidar_branch`` each make a map of the ground; they
    are laid side by side and encoded together for a centre-based detector and a mask.

    Args:
        config: Sizes.

    References:
        Liu et al., *BEVFusion*, ICRA 2023 (fusion on the ground); Yin et al., *Center-based 3D
        Object Detection and Tracking*, CVPR 2021 (the detection head).
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        self.camera_branch = CameraBranch(
            config.camera, depth=config.camera_depth, out=config.camera_out
        )
        self.ground_view = GroundView(config.grid, config.heights)
        self.camera_map = ConvUnit(
            config.camera_out * len(config.heights), config.fused, kernel=3, act="relu"
        )
        self.lidar_branch = LidarBranch(
            config.grid, config.lidar, depth=config.lidar_depth, out=config.lidar_out
        )
        convs = [ConvUnit(config.fused + 3 * config.lidar_out, config.fused, kernel=3, act="relu")]
        convs += [
            ConvUnit(config.fused, config.fused, kernel=3, act="relu")
            for _ in range(config.fused_depth - 1)
        ]
        self.fusion = nn.Sequential(*convs)
        self.detection = CentreHead(config.fused, config.head)
        self.drivable = nn.Sequential(
            ConvUnit(config.fused, config.head, kernel=3, act="relu"), nn.Conv2d(config.head, 1, 1)
        )

    def forward(
        self, images: Tensor, points: Tensor, projection: Tensor
    ) -> dict[str, dict[str, Tensor] | Tensor]:
        """Predict both tasks.

        Args:
            images: RGB in 0..1. Shape ``[B, 3, H, W]``, H and W multiples of 16.
            points: Shape ``[B, P, 4]``, see :class:`~taskprune.driving.fusion.frame.FusionBatch`.
            projection: LiDAR to pixels of ``images``. Shape ``[B, 3, 4]``.

        Returns:
            ``detection``: ``heat`` ``[B, classes, X, Y]`` logits and ``box`` ``[B, 8, X, Y]``;
            ``drivable``: logits ``[B, X, Y]``.
        """
        looked_up = self.ground_view(self.camera_branch(images), projection)
        from_camera = self.camera_map(looked_up)
        fused = self.fusion(torch.cat((from_camera, self.lidar_branch(points)), dim=1))
        return {"detection": self.detection(fused), "drivable": self.drivable(fused).squeeze(1)}


class CentreHead(nn.Module):
    """Marks the centre of every object and describes the box around it.

    References:
        Yin et al., *Center-based 3D Object Detection and Tracking*, CVPR 2021.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.shared = ConvUnit(channels, width, kernel=3, act="relu")
        self.heat = nn.Sequential(
            ConvUnit(width, width, kernel=3, act="relu"), nn.Conv2d(width, len(CLASSES), 1)
        )
        self.box = nn.Sequential(
            ConvUnit(width, width, kernel=3, act="relu"), nn.Conv2d(width, BOX_CODE, 1)
        )
        nn.init.constant_(self.heat[1].bias, HEAT_PRIOR)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.shared(x)
        return {"heat": self.heat(x), "box": self.box(x)}


def build_fusion_net(scale: str) -> FusionNet:
    """Build a freshly initialised net.

    Raises:
        InputError: Unknown scale.
    """
    if scale not in SCALES:
        raise InputError(f"`scale` must be one of {sorted(SCALES)}. Found {scale!r}.")
    return FusionNet(SCALES[scale])
