"""Safetensors files of fusion nets, which say which net they hold; the bundled one is one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from taskprune.driving.bundled import load_or_bundled
from taskprune.driving.fusion.net import FusionConfig, FusionNet
from taskprune.driving.netfile import load_weights, read_config, read_weights, write_weights

FORMAT = "taskprune-fusion-net-2"


def save_fusion_net(net: FusionNet, path: Path) -> None:
    """Write the net's weights and its sizes; whole or not at all. Denormals become zero.

    Raises:
        CheckpointError: The file cannot be written.
    """
    write_weights(path, net, config=asdict(net.config), file_format=FORMAT)


def load_fusion_net(path: Path) -> FusionNet:
    """Build the net of a file that `save_fusion_net` wrote, in eval mode.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else.
    """
    tensors, config = read_weights(path, kind="fusion net", file_format=FORMAT)
    net = FusionNet(read_config(FusionConfig, config, source=path))
    load_weights(net, tensors, source=path)
    return net.eval()


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
