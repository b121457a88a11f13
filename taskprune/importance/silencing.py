"""Take one modality away from the rest of a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


@contextmanager
def silenced(model: nn.Module, modules: Sequence[str]) -> Iterator[None]:
    """Let the rest of the network see zeros in place of what some modules return.

    The *outputs* of a branch are masked: with its weights at zero, norms would still let their
    shifts through.

    Args:
        model: The model.
        modules: Paths of the modules, see :func:`taskprune.coupling.mask_points`.
    """

    def silence(_module: nn.Module, _args: Any, output: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda tensor: tensor * 0, output)

    handles = [model.get_submodule(path).register_forward_hook(silence) for path in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
