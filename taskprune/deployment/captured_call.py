"""What a model itself is called with, caught where a forward calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from taskprune.calling.forward import Forward
from taskprune.errors import InputError, TaskPruneError
from taskprune.restore.lending import lent


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """The arguments of one call of a model."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def n_samples(self) -> int | None:
        """The size of dim 0 of the first tensor, if there is one."""
        tensors = [t for t in pytree.tree_leaves((self.args, self.kwargs)) if has_dims(t)]
        return len(tensors[0]) if tensors else None

    def with_samples(self, positions: list[int]) -> Call:
        """Return the same with these samples, of all tensors that have them along dim 0."""
        n = self.n_samples

        def chosen(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            # Each tensor its own, as the exporter knows them by identity.
            return leaf[positions] if has_dims(leaf) and len(leaf) == n else leaf.clone()

        args, kwargs = pytree.tree_map(chosen, (self.args, dict(self.kwargs)))
        return Call(args, kwargs)


def has_dims(leaf: object) -> bool:
    """Whether it is a tensor that could hold samples."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def run(model: nn.Module, call: Call) -> Any:
    """Return what a model makes of a call; the arguments are left as they were."""
    with torch.no_grad(), lent((call.args, dict(call.kwargs))):
        return model(*call.args, **call.kwargs)


def captured(model: nn.Module, forward: Forward, batch: Any) -> Call:
    """Return what the model itself is called with where `forward` is called with a batch."""
    calls: list[Call] = []
    device = next((t.device for t in (*model.parameters(), *model.buffers())), None)

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        moved = partial(pytree.tree_map_only, Tensor, lambda t: t.detach().clone())
        calls.append(Call(moved(args), moved(kwargs)))

    batch = pytree.tree_map_only(Tensor, lambda t: t.to(device), batch)
    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad(), lent(batch):
            forward(model, batch)
    except TaskPruneError:
        raise
    except Exception as error:
        raise InputError(
            f"`{type(model).__name__}` rejects the example: {type(error).__name__}: {error}. Pass "
            "what it takes, or `forward=lambda model, example: ...`."
        ) from error
    finally:
        handle.remove()
    if not calls:
        raise InputError(
            "Expected a `forward` that calls the model itself, as that is what is exported. Found "
            "one that only calls parts of it: export a module whose forward does the same."
        )
    return calls[0]
