"""HGNetV2 backbone: stem and four stages of HG blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskprune.driving.nets.config import NetConfig, StageConfig
from taskprune.driving.nets.conv import ConvUnit, LightConv


class Stem(nn.Module):
    """Stride 4 by a conv, two 2x2 convs beside a max-pool, and another conv.

    Shape: ``[B, 3, H, W] -> [B, out, H / 4, W / 4]``.
    """

    def __init__(self, mid: int, out: int) -> None:
        super().__init__()
        self.first = ConvUnit(3, mid, kernel=3, stride=2, act="relu")
        self.narrow = ConvUnit(mid, mid // 2, kernel=2, padding=0, act="relu")
        self.widen = ConvUnit(mid // 2, mid, kernel=2, padding=0, act="relu")
        self.reduce = ConvUnit(2 * mid, mid, kernel=3, stride=2, act="relu")
        self.last = ConvUnit(mid, out, act="relu")

    def forward(self, x: Tensor) -> Tensor:
        # A 2x2 window at stride 1 keeps the size when one row and column are added at the end.
        x = F.pad(self.first(x), (0, 1, 0, 1))
        convs = self.widen(F.pad(self.narrow(x), (0, 1, 0, 1)))
        pooled = F.max_pool2d(x, kernel_size=2, stride=1)
        y: Tensor = self.last(self.reduce(torch.cat((pooled, convs), dim=1)))
        return y


class HGBlock(nn.Module):
    """Convs in a row; input and all their outputs are concatenated, squeezed and widened again.

    Shape: ``[B, in, H, W] -> [B, stage.out, H, W]``.
    """

    def __init__(
        self, in_channels: int, stage: StageConfig, *, n_convs: int, residual: bool
    ) -> None:
        super().__init__()
        widths = [in_channels] + [stage.mid] * n_convs
        self.convs = nn.ModuleList(
            LightConv(c_in, stage.mid, kernel=stage.kernel)
            if stage.light
            else ConvUnit(c_in, stage.mid, kernel=stage.kernel, act="relu")
            for c_in in widths[:-1]
        )
        self.squeeze = ConvUnit(sum(widths), stage.out // 2, act="relu")
        self.excite = ConvUnit(stage.out // 2, stage.out, act="relu")
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for conv in self.convs:
            outputs.append(conv(outputs[-1]))
        y: Tensor = self.excite(self.squeeze(torch.cat(outputs, dim=1)))
        return y + x if self.residual else y


class HGNet(nn.Module):
    """The backbone; returns the maps of strides 8, 16 and 32.

    Shape: ``[B, 3, H, W] -> [B, C_i, H / s_i, W / s_i]`` for s = 8, 16, 32.

    References:
        PP-HGNetV2 (PaddleClas); used as in Zhao et al., *DETRs Beat YOLOs on Real-time Object
        Detection*, CVPR 2024, and *RMT-PPAD*, arXiv:2508.06529.
    """

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        mid, channels = config.stem
        self.stem = Stem(mid, channels)
        self.stages = nn.ModuleList()
        for number, stage in enumerate(config.stages):
            layers: list[nn.Module] = []
            if number:
                layers.append(
                    ConvUnit(
                        channels, channels, kernel=3, stride=2, conv_groups=channels, act="none"
                    )
                )
            for block in range(stage.n_blocks):
                layers.append(
                    HGBlock(channels, stage, n_convs=config.convs_per_block, residual=block > 0)
                )
                channels = stage.out
            self.stages.append(nn.Sequential(*layers))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]
