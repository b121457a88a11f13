"""Tensors of which each process holds a part, and their whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is one process's part of a distributed one (a ``DTensor``)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor of a shard, gathered; others as they are."""
    shard: Any = tensor
    return shard.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's part, which shares the shard's memory; others as they are."""
    shard: Any = tensor
    return shard.to_local() if is_sharded(tensor) else tensor


def part_for(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor sharded as ``like``; where that is none, as it is."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    shard: Any = like
    mesh = shard.device_mesh
    # Every process has the whole tensor and takes its own part.
    return distribute_tensor(
        tensor.to(mesh.device_type), mesh, shard.placements, src_data_rank=None
    )


@torch.no_grad()
def copy_whole(source: nn.Module, target: nn.Module) -> None:
    """Copy the gathered parameters and buffers of a sharded model into its unsharded twin.

    All processes must take part.
    """
    theirs = dict(source.named_parameters()) | dict(source.named_buffers())
    for name, tensor in (*target.named_parameters(), *target.named_buffers()):
        tensor.copy_(whole(theirs[name]))
