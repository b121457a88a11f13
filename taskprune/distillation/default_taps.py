"""Choose taps automatically: the deepest features that all outputs share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.distillation.taps import Tap, unwrapped
from taskprune.errors import InputError
from taskprune.forward import Forward, call_batch
from taskprune.rng import preserved_rng


@dataclass
class _Output:
    """A module's output that is a feature, in the order in which modules finish."""

    module: str
    call: int
    feature: Tensor


def default_taps(model: nn.Module, batch: Any, *, forward: Forward = call_batch) -> tuple[Tap, ...]:
    """Return the last shared module output of each resolution, in order of execution.

    *Shared* is a feature that every differentiable output of the model depends on (seen from
    which outputs have a gradient to it), so what belongs to single tasks is never compared.
    Features are maps ``[B, C, H, W]`` with more than one position; only where a model has none,
    tokens ``[B, N, C]``. Where a module and its last child put out the same tensor, the outer one
    is named. Runs the model once in eval mode and goes back once per output; everything is left
    as it was.

    Args:
        model: The teacher.
        batch: One batch.
        forward: ``(model, batch) -> outputs``.

    Raises:
        InputError: No output is differentiable, or no feature is shared by all of them.
    """
    modes = {module: module.training for module in model.modules()}
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:  # a frozen teacher has no graph to follow
            parameter.requires_grad_(True)
        model.eval()
        with preserved_rng(), torch.enable_grad(), _recorded(model) as seen:
            outputs = [o for o in _tensors(forward(model, batch)) if o.requires_grad]
            shared = _shared(seen, outputs)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, mode in modes.items():
            module.training = mode
    if not shared:
        raise InputError(
            f"No module output of the model is shared by all of its {len(outputs)} differentiable "
            "outputs, so there is no automatic choice of taps. Name them: `taps=['backbone.*']`."
        )
    n_calls: dict[str, int] = {}
    for output in seen:
        n_calls[output.module] = n_calls.get(output.module, 0) + 1
    last: dict[tuple[int, ...], _Output] = {}
    for output in shared:
        positions = _positions(output.feature)
        last.pop(positions, None)  # so that the dict's order is that of execution
        last[positions] = output
    return tuple(
        Tap(o.module, call=o.call if n_calls[o.module] > 1 else None) for o in last.values()
    )


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_Output]]:
    seen: list[_Output] = []
    calls: dict[str, int] = {}
    with ExitStack() as stack:
        for name, module in unwrapped(model).named_modules():
            if name:
                handle = module.register_forward_hook(_hook(name, seen, calls))
                stack.callback(handle.remove)
        yield seen


def _hook(name: str, seen: list[_Output], calls: dict[str, int]) -> Any:
    def record(_module: nn.Module, _args: Any, output: Any) -> None:
        call = calls.get(name, 0)
        calls[name] = call + 1
        if isinstance(output, Tensor) and output.requires_grad and output.dim() in (3, 4):
            seen.append(_Output(name, call, output))

    return record


def _shared(seen: list[_Output], outputs: list[Tensor]) -> list[_Output]:
    if not outputs or not seen:
        return []
    finals = {id(output) for output in outputs}
    candidates = [o for o in seen if id(o.feature) not in finals and _n_positions(o.feature) > 1]
    features = [o.feature for o in candidates]
    reached = [True] * len(features)
    for output in outputs:
        gradients = torch.autograd.grad(
            output, features, torch.zeros_like(output), retain_graph=True, allow_unused=True
        )
        reached = [r and g is not None for r, g in zip(reached, gradients, strict=True)]
    shared = [o for o, r in zip(candidates, reached, strict=True) if r]
    maps = [o for o in shared if o.feature.dim() == 4]
    return maps or shared


def _positions(feature: Tensor) -> tuple[int, ...]:
    return tuple(feature.shape[2:]) if feature.dim() == 4 else (feature.shape[1],)


def _n_positions(feature: Tensor) -> int:
    return torch.Size(_positions(feature)).numel()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for item in fields(value):
            yield from _tensors(getattr(value, item.name))
