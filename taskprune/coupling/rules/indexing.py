"""Indexing by tensors: gathers, look-ups, rankings."""

from __future__ import annotations

import torch

from taskprune.coupling.axes import Axis, axis_size, is_tracked, untracked
from taskprune.coupling.context import RuleContext
from taskprune.coupling.registry import channel_rule, overloads
from taskprune.coupling.rules.elementwise import shared_axis
from taskprune.graph.records import Ref

aten = torch.ops.aten

_BY_POSITION = "entries are picked by their positions"
_WRITTEN = "entries are written by their positions"


@channel_rule(aten.embedding.default)
def _embedding(ctx: RuleContext) -> None:
    weight, indices = ctx.tensor("weight"), ctx.tensor("indices")
    ctx.freeze(weight.axes[0], "structure", "rows of an embedding are looked up by number")
    looked_up = any(is_tracked(axis) for axis in indices.axes)
    ctx.produce([*indices.axes, weight.axes[1]], zero=weight.zero and not looked_up, weight=False)


@channel_rule(aten.index_select.default)
def _index_select(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    axes = list(state.axes)
    dim = ctx.dim("dim", len(axes))
    ctx.freeze(axes[dim], "structure", _BY_POSITION)
    axes[dim : dim + 1] = ctx.axes("index") or [untracked(ctx.output_shape()[dim])]
    ctx.produce(axes, zero=state.zero and not is_tracked(axes[dim]))


@channel_rule(aten.gather.default)
def _gather(ctx: RuleContext) -> None:
    """Along the other dims the index is as long as the source, or shorter by choice."""
    state, index = ctx.tensor("self"), ctx.tensor("index")
    dim = ctx.dim("dim", len(state.axes))
    axes: list[Axis] = []
    for d, (source, wanted) in enumerate(zip(state.axes, index.axes, strict=True)):
        if d == dim:
            ctx.freeze(source, "structure", _BY_POSITION)
            axes.append(wanted)
        elif axis_size(source) == axis_size(wanted):
            ctx.tie(source, wanted)
            axes.append(source if is_tracked(source) else wanted)
        else:
            ctx.freeze(source, "structure", _BY_POSITION)
            axes.append(wanted)
    ctx.produce(axes, zero=state.zero, weight=False)


@channel_rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(ctx: RuleContext) -> None:
    """Advanced indexing, by tensors of one size; boolean masks count as several dims."""
    state = ctx.tensor("self")
    taken, lead, shape = _indexed_dims(ctx)
    for d in taken:
        ctx.freeze(state.axes[d], "structure", _BY_POSITION)
    rest: list[Axis] = [axis for d, axis in enumerate(state.axes) if d not in taken]
    if _has_mask(ctx):
        _freeze_indices(ctx)
        new: list[Axis] = [untracked(n) for n in shape]
    else:
        indices = ctx.tensors("indices")
        new = [shared_axis(ctx, indices, len(shape) - d, n) for d, n in enumerate(shape)]
    zero = state.zero and not any(is_tracked(axis) for axis in new)
    ctx.produce([*rest[:lead], *new, *rest[lead:]], zero=zero)


def _has_mask(ctx: RuleContext) -> bool:
    values = ctx.analysis.graph.values
    return any(values[p.value].is_mask for p in ctx.argument("indices") if isinstance(p, Ref))


def _freeze_indices(ctx: RuleContext) -> None:
    for index in ctx.tensors("indices"):
        for axis in index.axes:
            ctx.freeze(axis, "structure", "its entries say which others are meant")


def _indexed_dims(ctx: RuleContext) -> tuple[set[int], int, tuple[int, ...]]:
    """Return the dims that are indexed, where the new dims go, and their sizes."""
    graph = ctx.analysis.graph
    taken: list[int] = []
    positions: list[int] = []
    d = 0
    for position, part in enumerate(ctx.argument("indices")):
        if not isinstance(part, Ref):
            d += 1
            continue
        value = graph.values[part.value]
        width = len(value.shape) if value.is_mask else 1
        taken += range(d, d + width)
        positions.append(position)
        d += width
    adjacent = positions == list(range(positions[0], positions[0] + len(positions)))
    lead = taken[0] if adjacent else 0
    rank = len(ctx.tensor("self").axes) - len(taken)
    output = ctx.output_shape() if ctx.operation.outputs else ()
    return set(taken), lead, output[lead : len(output) - rank + lead]


@channel_rule(*overloads("index_put", "_unsafe_index_put", "_index_put_impl"))
def _index_put(ctx: RuleContext) -> None:
    """What is written is as wide as what it is written to along the dims without an index."""
    state, values = ctx.tensor("self"), ctx.tensor("values")
    taken, lead, n_new = _written_dims(ctx)
    for d in taken:
        ctx.freeze(state.axes[d], "structure", _WRITTEN)
    _freeze_indices(ctx)
    rest = [axis for d, axis in enumerate(state.axes) if d not in taken]
    target: list[Axis | None] = [*rest[:lead], *[None] * n_new, *rest[lead:]]
    for axis, own in zip(reversed(values.axes), reversed(target), strict=False):
        if own is None:
            ctx.freeze(axis, "structure", _WRITTEN)
        elif axis_size(axis) == axis_size(own):
            ctx.tie(axis, own)
    ctx.produce(state.axes, zero=state.zero and values.zero)


def _written_dims(ctx: RuleContext) -> tuple[set[int], int, int]:
    """Return the dims that an index takes, where the dims of what it picks go, and how many."""
    graph = ctx.analysis.graph
    taken: list[int] = []
    positions: list[int] = []
    n_new = d = 0
    for position, part in enumerate(ctx.argument("indices")):
        width = 1
        if isinstance(part, Ref):
            value = graph.values[part.value]
            width = len(value.shape) if value.is_mask else 1
            n_new = max(n_new, 1 if value.is_mask else len(value.shape))
            taken += range(d, d + width)
            positions.append(position)
        d += width
    adjacent = positions == list(range(positions[0], positions[0] + len(positions)))
    return set(taken), taken[0] if adjacent else 0, n_new


@channel_rule(*overloads("index_add", "index_copy", "index_reduce"))
def _index_add(ctx: RuleContext) -> None:
    """Along the other dims, what is written is as long as what it is written to."""
    state, source = ctx.tensor("self"), ctx.tensor("source")
    written = ctx.dim("dim", len(state.axes))
    for axis in ctx.axes("index"):
        ctx.freeze(axis, "structure", _WRITTEN)
    for d, (axis, own) in enumerate(zip(source.axes, state.axes, strict=True)):
        if d == written:
            ctx.freeze(axis, "structure", _WRITTEN)
            ctx.freeze(own, "structure", _WRITTEN)
        else:
            ctx.tie(own, axis)
    axes = [
        own if is_tracked(own) or d == written else axis
        for d, (axis, own) in enumerate(zip(source.axes, state.axes, strict=True))
    ]
    ctx.produce(axes, zero=state.zero and source.zero)


@channel_rule(*overloads("scatter", "scatter_add", "scatter_reduce"))
def _scatter(ctx: RuleContext) -> None:
    """Along the other dims the index is as long as the target, or shorter by choice."""
    state, index = ctx.tensor("self"), ctx.tensor("index")
    dim = ctx.dim("dim", len(state.axes)) if state.axes else 0
    others = [index, *([ctx.tensor("src")] if ctx.has("src") else [])]
    for d, own in enumerate(state.axes):
        lengths = {other.shape[d] for other in others} | {state.shape[d]}
        if d == dim or len(lengths) > 1:
            for axis in (own, *(other.axes[d] for other in others)):
                ctx.freeze(axis, "structure", _WRITTEN)
        else:
            for other in others:
                ctx.tie(own, other.axes[d])
    ctx.produce(state.axes)


@channel_rule(aten.topk.default, *overloads("sort", "argsort", "kthvalue", "mode", "median"))
def _rank(ctx: RuleContext) -> None:
    """Entries change places along one dim; what is returned says where they were."""
    state = ctx.tensor("self")
    dim = ctx.argument("dim")
    ranked = range(len(state.axes)) if dim is None else [ctx.dim("dim", len(state.axes))]
    for d in ranked if state.axes else ():
        ctx.freeze(state.axes[d], "structure", "a ranking mixes the entries of this dim")
    for index, shape in ctx.results():
        if len(shape) == len(state.axes):
            axes = [untracked(n) if d in ranked else state.axes[d] for d, n in enumerate(shape)]
        else:
            axes = [a for d, a in enumerate(state.axes) if d not in ranked]
        ctx.produce(axes, index=index)


@channel_rule(*overloads("nonzero", "masked_select", "one_hot", "bincount", "searchsorted"))
def _positions(ctx: RuleContext) -> None:
    for state in ctx.tensors():
        for axis in state.axes:
            ctx.freeze(axis, "structure", _BY_POSITION)
    ctx.produce_fixed()


@channel_rule(*overloads("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"))
def _scan(ctx: RuleContext) -> None:
    state = ctx.tensor("self")
    if state.axes:
        ctx.freeze(
            state.axes[ctx.dim("dim", len(state.axes))],
            "structure",
            "a running total depends on the order of this dim",
        )
    for index, _ in ctx.results():
        ctx.produce(state.axes, index=index)
