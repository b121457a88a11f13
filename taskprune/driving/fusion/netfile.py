"""Safetensors files of fusion nets, which say which net they hold."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from taskprune.driving.fusion.grid import BevGrid
from taskprune.driving.fusion.net import FusionConfig, FusionNet
from taskprune.driving.netfile import load_weights, read_weights, write_weights

FORMAT = "taskprune-fusion-net-1"


def save_fusion_net(net: FusionNet, path: Path) -> None:
    """Write the net's weights and its sizes; whole or not at all. Denormals become zero."""
    metadata = {"format": FORMAT, "config": json.dumps(asdict(net.config))}
    write_weights(path, net, metadata=metadata)


def load_fusion_net(path: Path) -> FusionNet:
    """Build the net of a file that `save_fusion_net` wrote, in eval mode.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else.
    """
    tensors, metadata = read_weights(path, kind="fusion net", file_format=FORMAT)
    sizes = _with_tuples(json.loads(metadata["config"]))
    sizes["grid"] = BevGrid(**sizes["grid"])
    net = FusionNet(FusionConfig(**sizes))
    load_weights(net, tensors, source=path)
    return net.eval()


def _with_tuples(value: Any) -> Any:
    """JSON has lists only."""
    if isinstance(value, dict):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value
