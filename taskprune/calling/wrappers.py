"""Find the model inside what people wrap around it to run it faster or on several devices."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from taskprune.errors import InputError

_log = logging.getLogger("taskprune")

# By qualified name: importing these classes would load the compiler and the process groups.
_INNER = {
    "torch._dynamo.eval_frame.OptimizedModule": ("_orig_mod", "torch.compile(model)"),
    "torch.nn.parallel.data_parallel.DataParallel": ("module", "nn.DataParallel(model)"),
    "torch.nn.parallel.distributed.DistributedDataParallel": (
        "module",
        "DistributedDataParallel(model)",
    ),
}
_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}


def unwrap(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``.

    All other modules, those that hold a model in an attribute included, are models themselves.
    The wrapper is left as it is; it and the result share their parameters.

    Args:
        model: A model, wrapped any number of times or not at all.

    Returns:
        The bare model and, for each wrapper, a sentence on what was taken off and how to put it on
        again. Each sentence is logged as well.

    Raises:
        InputError: ``model`` is no module, or a graph that was captured from Python code; or its
            tensors are sharded over processes, lazy, or made in inference mode.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"Expected a `torch.nn.Module` as the model. Found {type(model).__name__}."
        )
    notes: list[str] = []
    while (known := _wrapper(model)) is not None:
        attribute, call = known
        notes.append(
            f"The model was taken out of {type(model).__name__}; what comes back is bare. "
            f"To wrap it again: `{call}`."
        )
        _log.warning(notes[-1])
        model = getattr(model, attribute)
    _refuse_sharded(model)
    _refuse_captured(model)
    _check_tensors(model)
    return model, tuple(notes)


def without_wrappers(model: nn.Module) -> nn.Module:
    """Return the model inside, whose modules have the user's own paths, for a look at them only.

    Hooks on its submodules run in whatever way the wrapper calls it.
    """
    while (known := _wrapper(model)) is not None:
        model = getattr(model, known[0])
    return model


def bare(model: nn.Module) -> nn.Module:
    """Return the model of :func:`unwrap` alone."""
    return unwrap(model)[0]


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run compiled parts of ``model`` as written: hooks and recorders see nothing otherwise."""
    compiled = any(
        getattr(module, "_compiled_call_impl", None) is not None or _is_compiled(module)
        for module in model.modules()
    )
    # The compiler is loaded already where something was compiled, and takes seconds where not.
    stance: Any = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with stance:
        yield


def _wrapper(model: nn.Module) -> tuple[str, str] | None:
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__)
    return next((_INNER[name] for name in names if name in _INNER), None)


def _is_compiled(module: nn.Module) -> bool:
    known = _wrapper(module)
    return known is not None and known[0] == "_orig_mod"


def _refuse_sharded(model: nn.Module) -> None:
    for path, module in model.named_modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _SHARDED and kind.__module__.startswith("torch.distributed"):
                raise InputError(
                    "Expected a model that holds whole parameters. Found "
                    f"{type(module).__name__} at `{path or 'the top'}`: FSDP shards parameters "
                    "over processes, so no process has the channels to compare or cut. Gather a "
                    "full state dict (`torch.distributed.checkpoint.state_dict.get_model_state_"
                    "dict` with `StateDictOptions(full_state_dict=True)`), load it into a fresh "
                    "unwrapped model, prune that, and shard the result."
                )


def _refuse_captured(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"Expected a model in Python. Found the {type(model).__name__} (TorchScript) of "
            f"{getattr(model, 'original_name', 'a model')}, whose code cannot follow a change of "
            "sizes. Prune the module that it was made of, then script or trace the result."
        )
    for path, module in model.named_modules():
        # Its graph says how many channels there are, and it refuses to change its mode.
        if isinstance(module, torch.fx.GraphModule) and "train" in vars(module):
            raise InputError(
                "Expected a model in Python. Found a graph from `torch.export` at "
                f"`{path or 'the top'}`, whose sizes are written down. Prune the module that it "
                "was made of, then export the result."
            )


def _check_tensors(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(
                f"Expected a model whose tensors have shapes. `{name}` is still lazy: run the "
                "model once on real inputs first."
            )
        if tensor.is_inference():
            raise InputError(
                "Expected a model whose tensors autograd can follow. "
                f"`{name}` was made in `torch.inference_mode`. Build or load the model outside of "
                "it; a copy made outside, `copy.deepcopy(model)`, will do as well."
            )
