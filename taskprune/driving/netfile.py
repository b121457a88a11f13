"""Safetensors files of driving nets, which say which net they hold."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from taskprune.driving.nets import NetConfig, PanopticDrivingNet, StageConfig
from taskprune.errors import CheckpointError

FORMAT = "taskprune-driving-net-1"


def save_net(net: PanopticDrivingNet, path: Path) -> None:
    """Write the net's weights, its sizes and its number of classes; whole or not at all.

    Denormal numbers are written as zero: they carry nothing and slow a CPU down.
    """
    metadata = {
        "format": FORMAT,
        "config": json.dumps(asdict(net.config)),
        "num_classes": str(net.detection.num_classes),
    }
    write_weights(path, net, metadata=metadata)


def load_net(path: Path) -> PanopticDrivingNet:
    """Build the net of a file that `save_net` wrote, in eval mode.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else.
    """
    tensors, metadata = read_weights(path, kind="driving net", file_format=FORMAT)
    sizes = json.loads(metadata["config"])
    sizes["stem"] = tuple(sizes["stem"])
    sizes["stages"] = tuple(StageConfig(**stage) for stage in sizes["stages"])
    net = PanopticDrivingNet(NetConfig(**sizes), num_classes=int(metadata["num_classes"]))
    load_weights(net, tensors, source=path)
    return net.eval()


def write_weights(path: Path, net: nn.Module, *, metadata: Mapping[str, str]) -> None:
    """Write a net's tensors, denormals as zero; whole or not at all."""
    tensors = {name: without_denormals(value) for name, value in net.state_dict().items()}
    write_tensors(path, tensors, metadata=metadata)


def read_weights(
    path: Path, *, kind: str, file_format: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of nets of one kind: tensors and metadata.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != file_format:
        raise CheckpointError(
            f"`{path}` must hold a {kind} of format {file_format}. Found format "
            f"{metadata.get('format')!r}. Pass `net.safetensors` of a training run of one."
        )
    return tensors, metadata


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], *, source: Path) -> None:
    """Copy `weights` into the net; all names and shapes must agree.

    Raises:
        CheckpointError: They do not; the net is as before.
    """
    own = net.state_dict()
    differing = sorted(own.keys() ^ weights.keys())
    differing += sorted(n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape)
    if differing:
        raise CheckpointError(
            f"`{source}` belongs to another net: {len(differing)} tensors are missing, unknown or "
            f"of another shape, such as `{differing[0]}`. Check scale and number of classes."
        )
    net.load_state_dict(dict(weights))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file beside its place, then move it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    partial = path.with_suffix(path.suffix + ".partial")
    with partial.open("wb") as file:
        file.write(save(plain, metadata=dict(metadata)))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors and metadata.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"`{path}` must be a safetensors file. There is none.")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"`{path}` must be a whole safetensors file. Reading it failed: {error}. Fetch or "
            "write the file again."
        ) from error


def without_denormals(value: Tensor) -> Tensor:
    """Return the tensor with zeros in place of denormal numbers."""
    if not value.is_floating_point():
        return value
    return torch.where(value.abs() < torch.finfo(value.dtype).tiny, 0, value)
