"""Models on the meta device: shapes without values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def without_values(model: nn.Module) -> str:
    """Return the name of the first parameter or buffer on the meta device; empty if none is."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return next((name for name, tensor in tensors if tensor.is_meta), "")


def shapes_only(inputs: Any) -> Any:
    """Return nested inputs with all their tensors on the meta device."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs)


@contextmanager
def beside(model: nn.Module) -> Iterator[None]:
    """Make tensors that a forward creates where it likes on the meta device, if the model is."""
    if not without_values(model):
        yield
        return
    with torch.device("meta"):
        yield
