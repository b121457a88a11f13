"""Convolution units: conv + norm + activation, its light form, and the two re-parametrised ones."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["silu", "relu", "none"]


def activation(kind: Activation) -> nn.Module:
    """Return a fresh activation module."""
    if kind == "silu":
        return nn.SiLU()
    return nn.ReLU() if kind == "relu" else nn.Identity()


class ConvUnit(nn.Module):
    """Bias-free convolution with "same" padding, batch norm, activation.

    Shape: ``[B, in, H, W] -> [B, out, ceil(H / stride), ceil(W / stride)]``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        conv_groups: int = 1,
        act: Activation = "silu",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride,
            kernel // 2 if padding is None else padding,
            groups=conv_groups,
            bias=False,
        )
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class LightConv(nn.Module):
    """A 1x1 conv without activation, then a depthwise conv: few parameters for a large kernel."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int) -> None:
        super().__init__()
        self.point = ConvUnit(in_channels, out_channels, act="none")
        self.depth = ConvUnit(
            out_channels, out_channels, kernel=kernel, conv_groups=out_channels, act="relu"
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.depth(self.point(x))
        return y


class RepConv(nn.Module):
    """3x3 and 1x1 branches, each with its own norm, summed before the activation.

    Equal to one 3x3 conv once the norms are fixed.

    References:
        Ding et al., *RepVGG: Making VGG-style ConvNets Great Again*, CVPR 2021.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.square = ConvUnit(channels, channels, kernel=3, act="none")
        self.point = ConvUnit(channels, channels, act="none")

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.square(x) + self.point(x))


class RepC3(nn.Module):
    """Two 1x1 branches, one of them followed by RepConvs, added.

    Shape: ``[B, in, H, W] -> [B, out, H, W]``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, n_convs: int) -> None:
        super().__init__()
        self.main = ConvUnit(in_channels, out_channels)
        self.convs = nn.Sequential(*(RepConv(out_channels) for _ in range(n_convs)))
        self.bypass = ConvUnit(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convs(self.main(x)) + self.bypass(x)
        return y
