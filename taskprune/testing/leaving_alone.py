"""Is a model, and the process around it, left as it was?"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def visible(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return all that a user can see of a model and of the process, ready to be compared.

    Returns:
        ``{kind: {name: what is seen}}``: the entries of parameters and buffers, which tensors and
        modules they are, how often they were written to, gradients, flags, hooks, attributes, the
        random generators, and what else belongs to the process.
    """
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    modules = dict(model.named_modules())
    attributes = {path: _attributes(module) for path, module in modules.items()}
    return {
        "parameters or buffers": {n: (t.dtype, _entries(t)) for n, t in tensors.items()},
        "identities": {
            **{name: (id(t), type(t), t.data_ptr()) for name, t in tensors.items()},
            **{
                path: (id(module), type(module), {name: id(v) for name, v in vars(module).items()})
                for path, module in modules.items()
            },
        },
        "writes": {name: tensor._version for name, tensor in tensors.items()},
        "gradients": {
            name: None if tensor.grad is None else (id(tensor.grad), _entries(tensor.grad))
            for name, tensor in tensors.items()
        },
        "requires_grad": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "training flags": {path: module.training for path, module in modules.items()},
        "hooks": {
            **{name: len(tensor._backward_hooks or {}) for name, tensor in tensors.items()},
            **{
                path: {name: value for name, value in own.items() if name.endswith("hooks")}
                for path, own in attributes.items()
            },
        },
        "attributes": {
            path: {name: value for name, value in own.items() if not name.endswith("hooks")}
            for path, own in attributes.items()
        },
        "the random generators": {
            "python": random.getstate(),
            "numpy": str(np.random.get_state()),  # noqa: NPY002 - the one that people use
            "torch": torch.get_rng_state().tolist(),
        },
        "the process": {
            "threads": torch.get_num_threads(),
            "grad mode": torch.is_grad_enabled(),
            "default dtype": torch.get_default_dtype(),
            "fast path": torch.backends.mha.get_fastpath_enabled(),
        },
    }


@contextmanager
def unchanged(model: nn.Module, *, but: Collection[str] = ()) -> Iterator[None]:
    """Assert that nothing visible changes inside, also where that ends in an exception.

    Args:
        model: The model.
        but: Kinds of :func:`visible` that may change.

    Raises:
        AssertionError: Something changed; says what.
    """
    before = visible(model)
    try:
        yield
    finally:
        after = visible(model)
        changed = [
            f"{kind} ({', '.join(names)})"
            for kind, seen in before.items()
            if kind not in but and (names := _differing(seen, after[kind]))
        ]
        found = "; ".join(changed)
        assert not changed, f"Expected {type(model).__name__} as it was. Found changed {found}."


def _differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = dict.fromkeys((*before, *after))
    return [
        name or "the top"
        for name in names
        if name not in before or name not in after or before[name] != after[name]
    ]


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: _shown(value) for name, value in vars(module).items() if name != "training"}


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    return id(value) if isinstance(value, Tensor | nn.Module) else repr(value)


def _entries(tensor: Tensor) -> bytes:
    """Return the entries bit by bit: all kinds of NaN are equal to themselves."""
    if tensor.is_meta:
        return b""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
