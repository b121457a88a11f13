"""Safetensors files of driving nets, which say which net they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from taskprune.driving.nets import NetConfig, PanopticDrivingNet
from taskprune.errors import CheckpointError, InputError
from taskprune.files import (
    as_record,
    as_type,
    make_folder_of,
    parse_json,
    read_sealed,
    write_sealed,
)

FORMAT = "taskprune-driving-net-2"

_Config = TypeVar("_Config")


def save_net(net: PanopticDrivingNet, path: Path) -> None:
    """Write the net's weights, its sizes and its number of classes; whole or not at all.

    Denormal numbers are written as zero: they carry nothing and slow a CPU down.

    Raises:
        CheckpointError: The file cannot be written.
    """
    config = {**asdict(net.config), "num_classes": net.detection.num_classes}
    write_weights(path, net, config=config, file_format=FORMAT)


def load_net(path: Path) -> PanopticDrivingNet:
    """Build the net of a file that `save_net` wrote, in eval mode.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else.
    """
    tensors, config = read_weights(path, kind="driving net", file_format=FORMAT)
    num_classes = config.pop("num_classes", None)
    sizes = read_config(NetConfig, config, source=path)
    if type(num_classes) is not int or num_classes < 1:
        raise CheckpointError(f"`{path}` must say a number of classes. Found {num_classes!r}.")
    net = PanopticDrivingNet(sizes, num_classes=num_classes)
    load_weights(net, tensors, source=path)
    return net.eval()


def write_weights(
    path: Path, net: nn.Module, *, config: Mapping[str, Any], file_format: str
) -> None:
    """Write a net's tensors, denormals as zero, and its sizes; whole or not at all.

    Raises:
        CheckpointError: The file cannot be written.
    """
    make_folder_of(path, option="its path")
    tensors = {name: without_denormals(value) for name, value in net.state_dict().items()}
    write_sealed(path, tensors, {"config": json.dumps(config)}, file_format=file_format)


def read_weights(
    path: Path, *, kind: str, file_format: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of nets of one kind: tensors and sizes.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else.
    """
    try:
        tensors, texts = read_sealed(path, file_format=file_format)
        return tensors, dict(as_type(Mapping[str, Any], parse_json(texts["config"]), "`config`"))
    except (CheckpointError, InputError, KeyError) as error:
        raise CheckpointError(
            f"`{path}` must hold a {kind}. {error} Pass `net.safetensors` of a training run of one."
        ) from error


def read_config(kind: type[_Config], content: Mapping[str, Any], *, source: Path) -> _Config:
    """Make the sizes of a net of what its file says.

    Raises:
        CheckpointError: They are no such sizes.
    """
    try:
        return as_record(kind, content, "the sizes of the net")
    except InputError as error:
        raise CheckpointError(f"`{source}` is damaged. {error}") from error


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


def without_denormals(value: Tensor) -> Tensor:
    """Return the tensor with zeros in place of denormal numbers."""
    if not value.is_floating_point():
        return value
    return torch.where(value.abs() < torch.finfo(value.dtype).tiny, 0, value)
