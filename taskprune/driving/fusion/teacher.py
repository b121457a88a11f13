"""The bundled trained camera-LiDAR net."""

from __future__ import annotations

from pathlib import Path

from taskprune.driving.bundled import load_or_bundled
from taskprune.driving.fusion.net import FusionNet
from taskprune.driving.fusion.netfile import load_fusion_net


def load_fusion_teacher(weights: Path | str | None = None) -> FusionNet:
    """Return a trained net in eval mode.

    Args:
        weights: File that ``taskprune-driving fusion train`` or `save_fusion_net` wrote. Default:
            the bundled scale-``n`` net, which is what :func:`train_fusion_net` returns.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else.
        MissingDependencyError: The bundled net is asked for, and was not installed.
    """
    return load_or_bundled(load_fusion_net, weights, "fusion_n.safetensors")
