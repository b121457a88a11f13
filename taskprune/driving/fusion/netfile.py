"""Safetensors files of fusion nets, which say which net they hold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

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
