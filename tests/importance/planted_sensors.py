"""A fusion net in which both branches carry one identical feature, and what its loss would be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from taskprune import Task
from taskprune.calling.modality import Modality
from taskprune.coupling import CouplingGroups, couple
from taskprune.graph import trace

N_OWN = 3
BRANCHES = (Modality("camera", "camera_branch"), Modality("lidar", "lidar_branch"))
Batch = tuple[tuple[Tensor, Tensor], Tensor]


class TwoSensors(nn.Module):
    """Channel 0 of both branches is the same feature; the other three of each are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.camera_branch = nn.Linear(1 + N_OWN, 1 + N_OWN, bias=False)
        self.lidar_branch = nn.Linear(1 + N_OWN, 1 + N_OWN, bias=False)
        self.fusion = nn.Linear(2 * (1 + N_OWN), 10, bias=False)
        self.head = nn.Linear(10, 1, bias=False)

    def forward(self, camera: Tensor, lidar: Tensor) -> Tensor:
        both = torch.cat((self.camera_branch(camera), self.lidar_branch(lidar)), dim=-1)
        out: Tensor = self.head(self.fusion(both))
        return out


def planted() -> tuple[TwoSensors, list[Batch]]:
    """Return the net at its optimum, and batches whose labels are noisy."""
    g = torch.Generator().manual_seed(0)
    net = TwoSensors().double()
    with torch.no_grad():
        for branch in (net.camera_branch, net.lidar_branch):
            branch.weight.copy_(torch.eye(1 + N_OWN))
        net.fusion.weight.copy_(torch.randn(net.fusion.weight.shape, generator=g) / 3)
        # Each sensor brings half of the shared feature, which as a whole matters most.
        for shared in (0, 1 + N_OWN):
            net.fusion.weight[:, shared] *= 3
        net.fusion.weight[:, 1 + N_OWN] = net.fusion.weight[:, 0]
        net.head.weight.copy_(torch.randn(1, 10, generator=g) / 3)
    batches: list[Batch] = []
    for _ in range(12):
        camera, lidar = torch.randn(2, 32, 1 + N_OWN, generator=g, dtype=torch.float64)
        lidar[:, 0] = camera[:, 0]
        with torch.no_grad():
            clean = net(camera, lidar)
        noise = 0.3 * torch.randn(clean.shape, generator=g, dtype=torch.float64)
        batches.append(((camera, lidar), clean + noise))
    return net, batches


def squared(outputs: Tensor, batch: Any) -> Tensor:
    loss: Tensor = (outputs - batch[1]).square().mean()
    return loss


TASKS = {"depth": Task(squared, outputs="output")}


def coupled(net: nn.Module, batches: list[Batch]) -> CouplingGroups:
    return couple(trace(net, batches[0][0], tasks={"depth": "output"}))


def lost_for_good(net: TwoSensors, batches: list[Batch], gone: tuple[str, int]) -> float:
    """Return how far the fused feature moves at best once a channel is gone.

    The fusion's weights are refitted by least squares, which is the most that any training of them
    could bring back.
    """
    camera = torch.cat([batch[0][0] for batch in batches])
    lidar = torch.cat([batch[0][1] for batch in batches])
    with torch.no_grad():
        both = torch.cat((net.camera_branch(camera), net.lidar_branch(lidar)), dim=1)
        fused = net.fusion(both)
        column = gone[1] + (1 + N_OWN) * (gone[0] == "lidar_branch")
        left = both[:, torch.arange(both.shape[1]) != column]
        refitted = left @ torch.linalg.lstsq(left, fused).solution
        return float((refitted - fused).norm() / fused.norm())
