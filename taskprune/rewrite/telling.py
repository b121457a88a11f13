"""Whether outputs tell anything about what was removed, and where else to look if they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward
from taskprune.calling.outputs import flatten_outputs
from taskprune.plan.decisions import KeptEntries


def may_be_silent(output: Tensor) -> bool:
    """Whether an output might be the same whatever is removed: a closer look tells.

    It is empty, nowhere finite, or differs along one of its dims at most, as the bias of a head
    does that reads nothing.
    """
    values = output.detach()
    if not values.numel() or not bool(values.isfinite().any()):
        return True
    dims = [dim for dim, size in enumerate(values.shape) if size > 1]
    return sum(_differs_along(values, dim) for dim in dims) <= 1


def _differs_along(values: Tensor, dim: int) -> bool:
    first = values.narrow(dim, 0, 1)
    return not bool(((values == first) | (values.isnan() & first.isnan())).all())


def by_modules(activations: Iterable[KeptEntries], known: Iterable[str], forward: Forward) -> Any:
    """Return a forward whose outputs are what modules return, of the kept channels.

    Args:
        activations: Where channels appear, see :attr:`PruningPlan.activations`.
        known: Modules that there are in both models.
        forward: Runs a model.
    """
    names = set(known)
    kept: dict[str, list[KeptEntries]] = {}
    for entries in activations:
        if entries.name in names:
            kept.setdefault(entries.name, []).append(entries)

    def run(model: nn.Module, inputs: Any) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for name in kept:
                hook = _noting(found, name, kept[name])
                stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
            forward(model, inputs)
        return found

    return run


def _noting(
    found: dict[str, Tensor], name: str, kept: Iterable[KeptEntries]
) -> Callable[[nn.Module, Any, Any], None]:
    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        tensors = list(flatten_outputs(output).values())
        if len(tensors) != 1:
            return
        tensor = tensors[0].detach()
        for entries in kept:
            if entries.dim < tensor.ndim and tensor.shape[entries.dim] == entries.size:
                index = torch.tensor(entries.keep, device=tensor.device)
                tensor = tensor.index_select(entries.dim, index)
        found[f"{name} {len(found)}" if name in found else name] = tensor.clone()

    return note
