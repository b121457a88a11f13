"""The panoptic driving net: vehicles, drivable area and lane lines in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.nets.backbone import HGNet
from taskprune.driving.nets.config import SCALES, STRIDES, NetConfig
from taskprune.driving.nets.conv import ConvUnit
from taskprune.driving.nets.decoder import DetectionDecoder
from taskprune.driving.nets.encoder import HybridEncoder
from taskprune.driving.nets.gate import GatedAdapter
from taskprune.driving.nets.segmentation import SEGMENTATION_TASKS, SegmentationDecoder
from taskprune.errors import InputError

ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "backbone": ("backbone.stages.1", "backbone.stages.2", "backbone.stages.3"),
        "encoder": ("encoder.top_down3", "encoder.bottom_up4", "encoder.bottom_up5"),
    }
)
"""Where S3, S4, S5 and F3, F4, F5 come out: what a student shares with its teacher."""

FEATURE_MODULES = tuple(path for paths in ROLES.values() for path in paths)
"""The modules of all roles."""


class PanopticDrivingNet(nn.Module):
    """Backbone and encoder shared by three tasks, gated adapters, two decoders.

    References:
        Wang et al., *RMT-PPAD: Real-time Multi-task Learning for Panoptic Perception in
        Autonomous Driving*, arXiv:2508.06529. Written anew from the description.
    """

    taskprune_roles = ROLES

    def __init__(self, config: NetConfig, *, num_classes: int = 1) -> None:
        super().__init__()
        hidden = config.hidden
        self.config = config
        self.backbone = HGNet(config)
        self.encoder = HybridEncoder(config)
        self.project = nn.ModuleList(ConvUnit(hidden, hidden, act="none") for _ in STRIDES)
        self.detection_gates = nn.ModuleList(GatedAdapter(hidden) for _ in STRIDES)
        self.segmentation_gates = nn.ModuleList(GatedAdapter(hidden) for _ in STRIDES)
        self.detection = DetectionDecoder(config, num_classes=num_classes)
        self.segmentation = SegmentationDecoder(hidden, config.segmentation)

    def forward(self, images: Tensor, targets: DrivingBatch | None = None) -> dict[str, Any]:
        """Predict all three tasks.

        Args:
            images: RGB in 0..1. Shape ``[B, 3, H, W]``, H and W multiples of 32.
            targets: Labels that become denoising queries in training; ignored in eval mode.

        Returns:
            ``detection``: ``boxes`` ``[B, Q, 4]`` (cx, cy, w, h in 0..1) and ``logits``
            ``[B, Q, num_classes]``; ``drivable`` and ``lane``: logits ``[B, H, W]``. In training
            ``detection`` also holds ``auxiliary`` (earlier layers), ``encoder`` (proposals) and,
            where ``targets`` has boxes, ``denoising``.

        Raises:
            InputError: The image size does not fit.
        """
        if images.dim() != 4 or images.shape[2] % STRIDES[-1] or images.shape[3] % STRIDES[-1]:
            raise InputError(
                f"`images` must have shape [B, 3, H, W] with H and W multiples of {STRIDES[-1]}. "
                f"Found {tuple(images.shape)}. Resize or pad the images."
            )
        maps = self.encoder(self.backbone(images))
        shared = [project(x) for project, x in zip(self.project, maps, strict=True)]
        for_boxes = [gate(x) for gate, x in zip(self.detection_gates, shared, strict=True)]
        for_masks = [gate(x) for gate, x in zip(self.segmentation_gates, shared, strict=True)]
        masks = self.segmentation(for_masks)
        outputs: dict[str, Any] = {"detection": self.detection(for_boxes, targets)}
        for number, task in enumerate(SEGMENTATION_TASKS):
            outputs[task] = masks[:, number]
        return outputs


def build_net(scale: str, *, num_classes: int = 1) -> PanopticDrivingNet:
    """Build a freshly initialised net.

    Args:
        scale: ``"n"`` (1.5 M parameters, for 320x192), ``"s"`` (7.5 M) or ``"l"`` (35 M, for
            640x640).
        num_classes: Kinds of objects to detect.

    Raises:
        InputError: Unknown scale or no class.
    """
    if scale not in SCALES:
        raise InputError(f"`scale` must be one of {sorted(SCALES)}. Found {scale!r}.")
    if num_classes < 1:
        raise InputError(f"`num_classes` must be at least 1. Found {num_classes}.")
    return PanopticDrivingNet(SCALES[scale], num_classes=num_classes)
