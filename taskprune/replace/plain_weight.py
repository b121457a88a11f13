"""Layers whose weight is divided by its spectral norm, with the quotient as their weight.

The norm is one number of the whole matrix. A smaller matrix has another one, so that all that stays
of the weight would be scaled, and no gain is there to take that on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)

_HOOKS = (SpectralNorm, SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook)


def is_spectrally_normed(module: nn.Module) -> bool:
    """Whether spectral norms, and nothing else, re-parametrise tensors of a layer.

    Recurrent layers hold their weights in a list besides, and stay as they are.
    """
    chains, hooks = dict(_chains(module)), list(_hooks(module))
    return (
        bool(chains) != bool(hooks)
        and not isinstance(module, nn.RNNBase)
        and all([type(one) for one in chain] == [_SpectralNorm] for chain in chains.values())
    )


def with_plain_weight(module: nn.Module) -> nn.Module:
    """Return an equal layer of the class it had, with plain parameters; `module` stays as it is.

    Training flag, hooks, attributes, dtype, device and ``requires_grad`` are kept.
    """
    kind = parametrize.type_before_parametrizations(module)
    plain: nn.Module = nn.Module.__new__(kind)
    # Registries of its own; all else, what the user attached included, is the original's.
    vars(plain).update(
        {n: copy.copy(v) if isinstance(v, dict) else v for n, v in vars(module).items()}
    )
    parameters: dict[str, Any] = {}
    with torch.no_grad():
        for name, chain in _chains(module):
            # A copy: in training, every look at the weight is a step of the power iteration.
            quotient = copy.deepcopy(chain).eval()()
            parameters[name] = nn.Parameter(quotient, chain.original.requires_grad)
        normed = {hook.name: hook for hook in _hooks(module)}
        for name, parameter in module._parameters.items():
            own = name.removesuffix("_orig")
            if name != own and own in normed:
                quotient = normed[own].compute_weight(module, do_power_iteration=False)
                parameters[own] = nn.Parameter(quotient, getattr(parameter, "requires_grad", True))
            else:
                parameters[name] = parameter
    plain._parameters = parameters
    plain._modules.pop("parametrizations", None)
    for name in normed:
        for buffer in (f"{name}_u", f"{name}_v"):
            del plain._buffers[buffer]
        vars(plain).pop(name, None)
    for registry in ("_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"):
        held = getattr(plain, registry)
        for key in [key for key, hook in held.items() if isinstance(_bare(hook), _HOOKS)]:
            del held[key]
    return plain


def parts_of(name: str) -> list[tuple[str, slice]]:
    """Return which parameter one of the original's becomes."""
    if name.startswith("parametrizations."):
        return [(name.split(".")[1], slice(None))]
    return [(name.removesuffix("_orig"), slice(None))]


def _chains(module: nn.Module) -> Iterator[tuple[str, Any]]:
    # Not through `_modules`, which in a script module is no dict.
    chains = dict(module.named_children()).get("parametrizations")
    if isinstance(chains, nn.ModuleDict):
        yield from chains.items()


def _hooks(module: nn.Module) -> Iterator[Any]:
    return (hook for hook in module._forward_pre_hooks.values() if type(hook) is SpectralNorm)


def _bare(hook: Any) -> Any:
    """Return what was registered; torch wraps hooks that load a state dict."""
    return getattr(hook, "hook", hook)
