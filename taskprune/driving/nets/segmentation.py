"""Adaptive segmentation decoder: each task weighs the three scales for itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskprune.driving.nets.config import STRIDES

SEGMENTATION_TASKS = ("drivable", "lane")

MASK_PRIOR_LOGIT = -2.0
"""First answer for every pixel: between the share of road and of lane lines in a picture."""


class SegmentationDecoder(nn.Module):
    """Masks of all segmentation tasks; they share every conv and differ in the scale weights.

    Three 1x1 projections, resized to stride 8, are added with softmax weights (tasks x scales).
    The tasks then lie in the batch, one transposed conv is applied three times up to the input
    resolution, and a 3x3 conv with a 1x1 conv gives the logits.

    Shape: maps ``[B, C, H / s, W / s]`` for s = 8, 16, 32 in, logits ``[B, 2, H, W]`` out.

    References:
        Wang et al., *RMT-PPAD*, arXiv:2508.06529.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.num_tasks = len(SEGMENTATION_TASKS)
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for _ in STRIDES)
        self.scale_logits = nn.Parameter(torch.zeros(self.num_tasks, len(STRIDES)))
        self.upsample = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.refine = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.predict = nn.Conv2d(width, 1, 1)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Upsample bilinearly at first, which keeps the features' size three times in a row."""
        line = torch.tensor([0.25, 0.75, 0.75, 0.25])
        self.upsample.weight.mul_(0.1)
        self.upsample.weight.diagonal(dim1=0, dim2=1).add_(torch.outer(line, line).unsqueeze(-1))
        for layer, start in ((self.upsample, 0.0), (self.predict, MASK_PRIOR_LOGIT)):
            assert layer.bias is not None
            layer.bias.fill_(start)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        weights = self.scale_logits.softmax(dim=1)  # [tasks, scales]
        size = maps[0].shape[2:]
        mixed: Tensor | None = None
        for number, (project, x) in enumerate(zip(self.project, maps, strict=True)):
            x = project(x)
            if number:
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            part = x.unsqueeze(1) * weights[:, number].view(-1, 1, 1, 1)
            mixed = part if mixed is None else mixed + part
        assert mixed is not None
        x = mixed.flatten(0, 1)  # [B * tasks, width, H / 8, W / 8]
        for _ in range(STRIDES[0].bit_length() - 1):
            x = self.upsample(x)
        logits: Tensor = self.predict(F.relu(self.norm(self.refine(x)), inplace=True))
        return logits.view(-1, self.num_tasks, logits.shape[2], logits.shape[3])
