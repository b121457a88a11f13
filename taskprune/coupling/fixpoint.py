"""Find out which channels live or die together: :func:`couple`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
from torch import nn
from torch.utils.flop_counter import flop_registry

from taskprune.coupling import rules
from taskprune.coupling.assembly import assemble
from taskprune.coupling.axes import Origin, untracked
from taskprune.coupling.context import OUTSIDE, Analysis, RuleContext, TensorState
from taskprune.coupling.groups import CouplingGroups, FreezeReason
from taskprune.coupling.partition import FactorPolicy, prefer_outer
from taskprune.coupling.provenance import add_constant_sizes, settle
from taskprune.coupling.randomness import keep_what_is_drawn
from taskprune.coupling.registry import find_rule, functional_form, operator_of
from taskprune.coupling.rules.attention import keep_default_scale
from taskprune.coupling.rules.elementwise import leave_torch
from taskprune.coupling.rules.normalization import follow_rms_norm
from taskprune.coupling.rules.pooling import follow_affine_grid
from taskprune.coupling.rules.reshape import follow_broadcast
from taskprune.coupling.splitting import freed_layers, locked_layers, split_layers
from taskprune.coupling.standard_sizes import add_standard_sizes
from taskprune.coupling.unit_table import Column, UnitTable
from taskprune.coupling.unread import with_readers
from taskprune.errors import InputError, UnsupportedOperatorError, short
from taskprune.graph.records import ModelGraph, Operation, Ref, TensorValue
from taskprune.restore.process import collection_paused

Protected = str | type[nn.Module]

_CALLS: dict[str, Callable[[RuleContext], object]] = {
    "scaled_dot_product_attention": keep_default_scale,
    "rms_norm": follow_rms_norm,
    "broadcast_tensors": follow_broadcast,
    "affine_grid": follow_affine_grid,
    **dict.fromkeys(("numpy", "__array__", "__dlpack__", "tolist"), leave_torch),
}
"""What holds of functions whatever operators torch takes them apart into."""

_TRANSFORMS = "torch.func."
"""How calls are named of which a transform, such as ``vmap``, makes operators on other tensors."""


@collection_paused()
def couple(
    graph: ModelGraph,
    *,
    protect: Protected | Sequence[Protected] = (),
    strict: bool = False,
    factor_policy: FactorPolicy = prefer_outer,
) -> CouplingGroups:
    """Partition the entries of all parameters into channels, and channels into groups.

    Each entry along each dim of each parameter is a unit. The rule of every operator ties units,
    freezes them, or splits a dim into factors; the connected components of all ties are the
    atomic channels, and those that occur in the same dims equally often form a group. The cost
    grows with the dims of the parameters, not with the sizes of activations.

    A grouped convolution whose equal groups lock channels is coupled as the equal module with
    groups of any widths, if that sets some free; see :attr:`CouplingGroups.replacements`.

    Args:
        graph: From :func:`taskprune.graph.trace`. The model itself is not needed any more.
        protect: Modules whose output channels must all stay: names (with everything below), shell
            patterns such as ``"head.*"``, or types; one of them or several.
        strict: Raise on an operator without a rule, and on a group that stays because a rule does
            not know what happens to it, in place of freezing either; and on parameters that no
            traced forward read.
        factor_policy: Which factor of a reshape may shrink where several could:
            ``prefer_outer`` (heads before head width) or ``prefer_inner``, or one's own.

    Raises:
        UnsupportedOperatorError: In strict mode only.
        InputError: An entry of ``protect`` matches no module or parameter; in strict mode also
            where a parameter was not read.
        CouplingError: A rule contradicts the graph; a defect of that rule.
    """
    entries = (protect,) if isinstance(protect, str | type) else tuple(protect)

    def solve(written: ModelGraph) -> CouplingGroups:
        analysis = Analysis(written, UnitTable())
        _enter_tensors(analysis)
        _run_rules(analysis, strict=strict)
        _freeze_outputs(analysis)
        _freeze_protected(analysis, entries)
        add_constant_sizes(analysis)
        add_standard_sizes(analysis)
        solution, assignment = settle(analysis, factor_policy)
        groups = assemble(analysis, solution, assignment)
        if strict:
            _refuse_ignorance(groups)
        return with_readers(analysis, solution.classes, groups)

    groups = solve(graph)
    layers = locked_layers(graph, groups)
    while layers:
        split = solve(split_layers(graph, layers))
        freed = freed_layers(layers, groups, split)
        if freed == layers:
            return split
        layers = freed
    return groups


def _enter_tensors(analysis: Analysis) -> None:
    """Give units to all parameters and float buffers, in order of first use."""
    graph = analysis.graph
    named = {**graph.parameters, **graph.buffers}
    order: dict[int, None] = {}
    positions: set[int] = set()
    for operation in graph.operations:
        values = dict.fromkeys(operation.operands)
        order.update(values)
        if not _treats_alike(operation):
            positions.update(values)
    used = set(order)
    order.update(dict.fromkeys(named.values()))
    by_number = set(named.values())
    for number in order:
        if number in by_number:
            value = graph.values[number]
            counts = not value.is_floating and (number in positions or number not in used)
            _enter_tensor(analysis, value, is_used=number in used, counts=counts)


def _treats_alike(operation: Operation) -> bool:
    """Whether an operator treats each entry of its tensors for itself."""
    rule = find_rule(_returning(operation)[0])
    return rule is not None and rule.__module__.endswith((".elementwise", ".quantization"))


def _enter_tensor(analysis: Analysis, value: TensorValue, *, is_used: bool, counts: bool) -> None:
    if counts:
        # Entries of integer buffers are positions or counts, whose dims do not shrink, unless all
        # that is done with them is done entry by entry.
        axes = tuple(untracked(n, OUTSIDE) for n in value.shape)
    else:
        table = analysis.units
        axes = tuple(table.column(value.name, dim, n) for dim, n in enumerate(value.shape))
        analysis.largest_dim = max(analysis.largest_dim, *value.shape, 1)
        if not is_used:
            for axis in axes:
                table.freeze_axis(axis, None)
    analysis.states[value.id] = TensorState(axes, zero=True, weight=True)


def _run_rules(analysis: Analysis, *, strict: bool) -> None:
    macs_of = analysis.graph.modes[0] if analysis.graph.modes else "eval"
    begun: set[int] = set()
    position = {id(call): n for n, call in enumerate(analysis.graph.calls)}
    idle = deque(_without_operators(analysis.graph))
    for operation in analysis.graph.operations:
        while idle and position[id(idle[0].call)] < position[id(operation.call)]:
            _follow_call(analysis, idle.popleft())
        target, operation = _returning(operation)
        ctx = RuleContext(analysis, operation)
        call = operation.call
        if call.function in _CALLS and id(call) not in begun:
            begun.add(id(call))
            _CALLS[call.function](ctx)
        n_work = len(analysis.work)
        rule = find_rule(target)
        if rule is None or call.function.startswith(_TRANSFORMS):
            _freeze_unknown(ctx, strict=strict)
        else:
            rule(ctx)
            keep_what_is_drawn(ctx)
        if operation.mode != macs_of:
            # Costs are those of one forward pass.
            del analysis.work[n_work:]
    for operation in idle:
        _follow_call(analysis, operation)


def _without_operators(graph: ModelGraph) -> Iterator[Operation]:
    """Yield calls of functions that hold something whatever runs, where nothing ran."""
    ran = {id(operation.call) for operation in graph.operations}
    for call in graph.calls:
        if call.function in _CALLS and id(call) not in ran:
            yield Operation(call.function, {}, (), (), call, "eval")


def _follow_call(analysis: Analysis, operation: Operation) -> None:
    _CALLS[operation.call.function](RuleContext(analysis, operation))


def _returning(operation: Operation) -> tuple[str, Operation]:
    """Return the operator by whose rule an operation goes, and it without ``out`` arguments."""
    form = functional_form(operation.target)
    if form is None or find_rule(operation.target) is not None:
        return operation.target, operation
    target, written = form
    arguments = {n: value for n, value in operation.arguments.items() if n not in written}
    return target, replace(operation, arguments=arguments)


def _freeze_unknown(ctx: RuleContext, *, strict: bool) -> None:
    touched = [axis for state in ctx.tensors() for axis in state.axes if axis and axis[0]]
    tracked_axes = [axis for axis in touched if any(f.units is not None for f in axis)]
    operation = ctx.operation
    call = operation.call.function
    name = call if call.startswith(_TRANSFORMS) else operation.target
    if tracked_axes and strict:
        shapes = [list(state.shape) for state in ctx.tensors()]
        raise UnsupportedOperatorError(
            f"No channel rule for {name}, called at {operation.call.source or '?'} "
            f"in module '{operation.call.module}' on tensors of shapes {shapes}. Register one with "
            "`@channel_rule`, or drop `strict=True` to keep the channels that it touches."
        )
    for axis in tracked_axes:
        ctx.freeze(axis, "unknown", f"passes through {name}, which has no channel rule")
    origin = f"meets what {name} returns, which has no channel rule"
    ctx.produce_fixed(Origin("unknown", origin) if tracked_axes else None)
    _count_as_it_is(ctx)


def _count_as_it_is(ctx: RuleContext) -> None:
    """Note the multiply-adds that torch's counter knows of an operator that stays as it is."""
    flops = flop_registry.get(operator_of(ctx.operation.target).overloadpacket)
    if flops is None:
        return
    arguments = [
        ctx.tensor(name).shape if isinstance(value, Ref) else value
        for name, value in ctx.operation.arguments.items()
    ]
    results = [ctx.output_shape(index) for index in range(len(ctx.operation.outputs))]
    made = results[0] if len(results) == 1 else results
    ctx.count(flops(*arguments, out_val=made) // 2)


def _refuse_ignorance(groups: CouplingGroups) -> None:
    if groups.untraced:
        raise InputError(
            f"No traced forward reads `{groups.untraced[0]}` ({len(groups.untraced)} such "
            "parameters in all), so what its code will read is not known. Hand in forwards that "
            "run it too, `forward=[..., ...]`, or drop `strict=True` to keep what it could read."
        )
    for group in groups.frozen:
        for reason in group.reasons:
            if reason.kind == "unknown":
                raise UnsupportedOperatorError(
                    f"Group `{group.name}` ({group.n_channels} channels) would stay because it "
                    f"{reason.detail}, at {reason.source or '?'} in module '{reason.module}'. "
                    "Register a rule with `@channel_rule`, or drop `strict=True` to keep these "
                    "channels."
                )


def _freeze_outputs(analysis: Analysis) -> None:
    for output in analysis.graph.outputs:
        reason = FreezeReason("interface", f"is part of the model's output '{output.path}'")
        for axis in analysis.state(output.value).axes:
            analysis.units.freeze_axis(axis, reason)


def _freeze_protected(analysis: Analysis, protect: Iterable[Protected]) -> None:
    table = analysis.units
    read = table.reading()
    for entry in protect:
        columns = _protected_columns(analysis, entry)
        label = entry if isinstance(entry, str) else entry.__name__
        reason = FreezeReason("user", f"protected by '{label}'")
        for column in columns:
            units = np.arange(column.start, column.start + column.size, dtype=np.int64)
            if not read[units].any():
                table.freeze(units, reason)


def _protected_columns(analysis: Analysis, entry: Protected) -> list[Column]:
    modules = analysis.graph.modules
    if isinstance(entry, str):
        paths = [path for path in modules if path == entry or fnmatchcase(path, entry)]
    else:
        paths = [path for path, kind in modules.items() if issubclass(kind, entry)]
    columns = [
        column
        for column in analysis.units.columns
        if (isinstance(entry, str) and fnmatchcase(column.name, entry))
        or any(path == "" or column.name.startswith(f"{path}.") for path in paths)
    ]
    if not paths and not columns:
        raise InputError(
            "`protect` must name modules of the model, or types of them. "
            f"Found {short(entry)}, which "
            f"matches none of: {', '.join(repr(p) for p in list(modules)[1:9])}, …"
        )
    return columns


__all__ = ["couple", "rules"]
