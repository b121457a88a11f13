"""Choose taps automatically: the deepest features that all tasks share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.outputs import flatten_outputs, matching_paths
from taskprune.calling.task import Task
from taskprune.calling.wrappers import without_wrappers
from taskprune.distillation.channel_axes import ChannelAxes, watched_axes
from taskprune.distillation.taps import Tap
from taskprune.errors import InputError
from taskprune.restore import evaluating, preserved_rng
from taskprune.restore.process import without_reentrance


class NothingSharedError(InputError):
    """There is no feature that all tasks share."""


@dataclass
class _Output:
    """A module's output that is a feature, in the order in which modules finish."""

    module: str
    call: int
    feature: Tensor


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

    Features are maps ``[B, C, H, W]``, ``[B, C, D, H, W]`` or, as Swin has them, ``[B, H, W, C]``,
    tokens ``[B, N, C]`` and sequences of ``nn.Conv1d``, ``[B, C, L]``, all with more than one
    position. Where there are none, the last shared vector ``[B, C]`` is taken. ``H * W`` tokens
    have the resolution of the ``H x W`` map. What runs inside attention (per head or per window) is
    passed over. Where a module and its last child put out the same tensor, the outer one is named.
    Runs the model once in eval mode and goes back once per output; everything is left as it was.

    Args:
        model: The teacher.
        batch: One batch.
        forward: ``(model, batch) -> outputs``.
        tasks: The tasks, for the outputs that they declare.

    Raises:
        InputError: No output is differentiable, or no feature is shared by all tasks.
    """
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:  # a frozen teacher has no graph to follow
            parameter.requires_grad_(True)
        with (
            evaluating(model),
            preserved_rng(),
            torch.enable_grad(),
            without_reentrance(),
            watched_axes(model) as axes,
            _recorded(model) as seen,
        ):
            outputs = flatten_outputs(forward(model, batch))
            owned = _owned({p: o for p, o in outputs.items() if o.requires_grad}, tasks or {})
            shared = _features(_shared(seen, owned), axes)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not shared:
        whose = f"tasks {list(owned)}" if tasks else f"{len(owned)} differentiable outputs"
        raise NothingSharedError(
            f"No module output of the model is shared by all of its {whose}, so there is no "
            "automatic choice of taps. Name them: `taps=['backbone.*']`."
        )
    n_calls = Counter(output.module for output in seen)
    return tuple(
        Tap(
            found.module,
            call=found.call if n_calls[found.module] > 1 else None,
            channel_dim=axis,
        )
        for found, axis in _last_of_each_resolution(shared, axes)
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


def _last_of_each_resolution(
    shared: Sequence[_Output], axes: ChannelAxes
) -> list[tuple[_Output, int | None]]:
    """Return them in order of execution, with the axis of channels where it is not the usual."""
    grids: dict[int, tuple[int, ...]] = {}
    found: dict[tuple[int, ...], tuple[_Output, int | None]] = {}
    for output in shared:
        shape, axis = output.feature.shape, axes.of(output.feature)
        if output.feature.dim() == 3:
            n_positions = shape[1 if axis is None else 2]
            grid = grids.get(n_positions, (n_positions,))
        else:
            channels = axis or 1
            grid = tuple(n for d, n in enumerate(shape) if d not in (0, channels))
        grids[torch.Size(grid).numel()] = grid
        found.pop(grid, None)  # so that the dict's order is that of execution
        found[grid] = (output, axis)
    return list(found.values())


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_Output]]:
    seen: list[_Output] = []
    calls: Counter[str] = Counter()
    with ExitStack() as stack:
        for name, module in without_wrappers(model).named_modules():
            if name:
                stack.callback(module.register_forward_hook(_hook(name, seen, calls)).remove)
        yield seen


def _hook(name: str, seen: list[_Output], calls: Counter[str]) -> Any:
    def record(_module: nn.Module, _args: Any, output: Any) -> None:
        call = calls[name]
        calls[name] += 1
        if isinstance(output, Tensor) and output.requires_grad and 2 <= output.dim() <= 5:
            seen.append(_Output(name, call, output))

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


def _features(outputs: Sequence[_Output], axes: ChannelAxes) -> list[_Output]:
    """Leave out what has one position, if anything has more, and what runs inside attention."""
    # Five dims are volumes only where modules say so: attention by windows and heads has five too.
    maps = [o for o in outputs if o.feature.dim() in (3, 4) or axes.knows(o.feature)]
    maps = _of_whole_batch([o for o in maps if o.feature.dim() > 2])
    tokens = {(o.module, o.feature.shape[1]) for o in maps if o.feature.dim() == 3}
    kept = [
        o for o in maps if _n_positions(o.feature, axes) > 1 and not _is_inside_attention(o, tokens)
    ]
    return kept or _of_whole_batch([o for o in outputs if o.feature.dim() == 2])


def _of_whole_batch(outputs: Sequence[_Output]) -> list[_Output]:
    """Leave out windows, which are stacked on the batch's axis."""
    return [o for o in outputs if o.feature.shape[0] == outputs[0].feature.shape[0]]


def _n_positions(feature: Tensor, axes: ChannelAxes) -> int:
    if feature.dim() == 3:
        return feature.shape[1 if axes.of(feature) is None else 2]
    return feature[0, 0].numel()


def _is_inside_attention(output: _Output, tokens: Set[tuple[str, int]]) -> bool:
    """Tell queries, keys and weights [B, heads, N, ...] by a module around them with N tokens."""
    if output.feature.dim() != 4:
        return False
    parts = output.module.split(".")
    around = (".".join(parts[:n]) for n in range(1, len(parts)))
    return any((module, output.feature.shape[2]) in tokens for module in around)
