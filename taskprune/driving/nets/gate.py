"""Gate control with adapter: how much of a shared feature a task replaces by its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskprune.driving.nets.conv import ConvUnit

GATE_RANGE = (0.05, 0.95)


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm for globally pooled maps that also trains on a single image.

    One value a channel has no variance: plain batch norm refuses it, and normalising it by itself
    would return the shift whatever the input. With one value the running statistics are used
    instead and stay as they are; with more, this is `torch.nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return F.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=False,
                eps=self.eps,
            )
        return super().forward(input)


class Adapter(nn.Module):
    """The task's own reading of a shared map: 1x1, depthwise 3x3, 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = ConvUnit(channels, channels)
        self.depth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.expand = ConvUnit(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.expand(self.depth(self.reduce(x)))
        return y


class ChannelGate(nn.Module):
    """One value a channel from the pooled maps: ``[B, 2C, H, W] -> [B, C, 1, 1]`` in (0, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(2 * channels, channels // 8, 1)
        self.norm = PooledBatchNorm2d(channels // 8)
        self.expand = nn.Conv2d(channels // 8, channels, 1)

    def forward(self, both: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(both, 1)
        return torch.sigmoid(self.expand(F.relu(self.norm(self.reduce(pooled)))))


class SpatialGate(nn.Module):
    """One value a channel and place: ``[B, 2C, H, W] -> [B, C, H, W]`` in (0, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.reduce = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, both: Tensor) -> Tensor:
        return torch.sigmoid(self.reduce(F.relu(self.norm(self.depth(both)))))


class GateMixing(nn.Module):
    """How the two gates are mixed, one value a channel: shared and task map in, ``[B, C, 1, 1]``.

    Channel i reads channel i of both maps. A grouped conv over interleaved channels computes this
    too; the sum of two depthwise convs is the same function with the same parameters, runs several
    times faster, and lets channels be removed one by one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.read_shared = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.read_task = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.norm2 = PooledBatchNorm2d(channels)

    def forward(self, shared: Tensor, task: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.read_shared(shared) + self.read_task(task)))
        return torch.sigmoid(self.norm2(self.mix(F.adaptive_avg_pool2d(x, 1))))


class GatedAdapter(nn.Module):
    """Gate control with adapter (GCA): ``shared + gate * (adapter(shared) - shared)``.

    The gate mixes a channel gate and a spatial gate and stays within ``GATE_RANGE``, so neither
    the shared nor the task feature is ever cut off. Shape: ``[B, C, H, W] -> [B, C, H, W]``.

    References:
        Wang et al., *RMT-PPAD*, arXiv:2508.06529.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.adapter = Adapter(channels)
        self.channel_gate = ChannelGate(channels)
        self.spatial_gate = SpatialGate(channels)
        self.mixing = GateMixing(channels)

    def forward(self, shared: Tensor) -> Tensor:
        task: Tensor = self.adapter(shared)
        both = torch.cat((shared, task), dim=1)
        spatial = self.spatial_gate(both)
        gate = spatial + self.mixing(shared, task) * (self.channel_gate(both) - spatial)
        mixed: Tensor = shared + gate.clamp(*GATE_RANGE) * (task - shared)
        return mixed
