"""Choose taps automatically: the deepest features that all tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.distillation.taps import Tap, unwrapped
from taskprune.errors import InputError
from taskprune.forward import Forward, call_batch
from taskprune.outputs import flatten_outputs, matching_paths
from taskprune.rng import preserved_rng
from taskprune.tasks import Task

_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
"""Modules whose results have their channels on the last axis, whatever the number of axes."""


@dataclass
class _Output:
    """A module's output that is a feature, in the order in which modules finish."""

    module: str
    call: int
    feature: Tensor
    by_last_axis: bool


def default_taps(
    model: nn.Module,
    batch: Any,
    *,
    forward: Forward = call_batch,
    tasks: Mapping[str, Task] | None = None,
) -> tuple[Tap, ...]:
    """Return the last shared module output of each resolution, in order of execution.

    *Shared* is a feature that every task depends on, so what belongs to single tasks is never
    compared. A task depends on what any of its declared outputs has a gradient to (declared
    outputs that the model does not have are passed over). Where tasks do not declare theirs, each
    differentiable output that nobody declares counts as a task of its own.

    Features are maps ``[B, C, H, W]`` or, as Swin has them, ``[B, H, W, C]``, and tokens
    ``[B, N, C]``, all with more than one position. ``H * W`` tokens have the resolution of the
    ``H x W`` map. What runs inside attention (per head or per window) is passed over. Where a
    module and its last child put out the same tensor, the outer one is named. Runs the model once
    in eval mode and goes back once per output; everything is left as it was.

    Args:
        model: The teacher.
        batch: One batch.
        forward: ``(model, batch) -> outputs``.
        tasks: The tasks, for the outputs that they declare.

    Raises:
        InputError: No output is differentiable, or no feature is shared by all tasks.
    """
    modes = {module: module.training for module in model.modules()}
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:  # a frozen teacher has no graph to follow
            parameter.requires_grad_(True)
        model.eval()
        with preserved_rng(), torch.enable_grad(), _recorded(model) as seen:
            outputs = flatten_outputs(forward(model, batch))
            owned = _owned({p: o for p, o in outputs.items() if o.requires_grad}, tasks or {})
            shared = _features(_shared(seen, owned))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, mode in modes.items():
            module.training = mode
    if not shared:
        whose = f"tasks {list(owned)}" if tasks else f"{len(owned)} differentiable outputs"
        raise InputError(
            f"No module output of the model is shared by all of its {whose}, so there is no "
            "automatic choice of taps. Name them: `taps=['backbone.*']`."
        )
    n_calls: dict[str, int] = {}
    for output in seen:
        n_calls[output.module] = n_calls.get(output.module, 0) + 1
    return tuple(
        Tap(
            found.module,
            call=found.call if n_calls[found.module] > 1 else None,
            channel_dim=axis,
        )
        for found, axis in _last_of_each_resolution(shared)
    )


def _owned(outputs: Mapping[str, Tensor], tasks: Mapping[str, Task]) -> dict[str, list[Tensor]]:
    """Return the outputs of each task; of undeclared ones, each as one of its own."""
    paths = {
        name: [p for wanted in task.output_paths or () for p in matching_paths(wanted, outputs)]
        for name, task in tasks.items()
    }
    owned = {name: [outputs[p] for p in found] for name, found in paths.items() if found}
    if owned and all(task.output_paths is not None for task in tasks.values()):
        return owned
    declared = {path for found in paths.values() for path in found}
    return owned | {f"output {p}": [o] for p, o in outputs.items() if p not in declared}


def _last_of_each_resolution(shared: Sequence[_Output]) -> list[tuple[_Output, int | None]]:
    """Return them in order of execution, with the axis of channels where it is not the usual."""
    last_axis = {o.feature.shape for o in shared if o.by_last_axis and o.feature.dim() == 4}
    grids: dict[int, tuple[int, ...]] = {}
    found: dict[tuple[int, ...], tuple[_Output, int | None]] = {}
    for output in shared:
        shape = output.feature.shape
        if output.feature.dim() == 3:
            grid, axis = grids.get(shape[1], (shape[1],)), None
        elif shape in last_axis:
            grid, axis = tuple(shape[1:3]), 3
        else:
            grid, axis = tuple(shape[2:]), None
        grids[torch.Size(grid).numel()] = grid
        found.pop(grid, None)  # so that the dict's order is that of execution
        found[grid] = (output, axis)
    return list(found.values())


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
    def record(module: nn.Module, _args: Any, output: Any) -> None:
        call = calls.get(name, 0)
        calls[name] = call + 1
        if isinstance(output, Tensor) and output.requires_grad and output.dim() in (3, 4):
            by_last_axis = isinstance(module, _CHANNELS_LAST)
            seen.append(_Output(name, call, output, by_last_axis))

    return record


def _shared(seen: list[_Output], tasks: Mapping[str, list[Tensor]]) -> list[_Output]:
    finals = {id(output) for outputs in tasks.values() for output in outputs}
    candidates = [o for o in seen if id(o.feature) not in finals]
    if not tasks or not candidates:
        return []
    features = [o.feature for o in candidates]
    shared = [True] * len(features)
    for outputs in tasks.values():
        gradients = torch.autograd.grad(
            outputs,
            features,
            [torch.zeros_like(output) for output in outputs],
            retain_graph=True,
            allow_unused=True,
        )
        shared = [r and g is not None for r, g in zip(shared, gradients, strict=True)]
    return [o for o, r in zip(candidates, shared, strict=True) if r]


def _features(outputs: Sequence[_Output]) -> list[_Output]:
    """Leave out what has one position, and what runs inside attention."""
    if not outputs:
        return []
    batch_size = outputs[0].feature.shape[0]  # windows are stacked on the batch's axis
    kept = [o for o in outputs if o.feature.shape[0] == batch_size]
    tokens = {(o.module, o.feature.shape[1]) for o in kept if o.feature.dim() == 3}
    return [o for o in kept if _n_positions(o.feature) > 1 and not _is_inside_attention(o, tokens)]


def _n_positions(feature: Tensor) -> int:
    return feature.shape[1] if feature.dim() == 3 else feature[0, 0].numel()


def _is_inside_attention(output: _Output, tokens: Set[tuple[str, int]]) -> bool:
    """Tell queries, keys and weights [B, heads, N, ...] by a module around them with N tokens."""
    if output.feature.dim() != 4:
        return False
    parts = output.module.split(".")
    around = (".".join(parts[:n]) for n in range(1, len(parts)))
    return any((module, output.feature.shape[2]) in tokens for module in around)
