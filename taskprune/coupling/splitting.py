"""Grouped convolutions that lock channels for no other reason than equal groups.

A grouped convolution cuts its input by position. Where the input is a concatenation whose bounds
fall inside of a group, or partly channels that must stay, position ``j`` of one group is bound to
position ``j`` of all others, and channels stay that nothing needs. With unequal groups
(:class:`~taskprune.replace.UnequalGroupsConv`) they can go. Here such convolutions are found, and
written into the graph as if they had been traced that way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from taskprune.coupling.groups import CouplingGroups
from taskprune.graph.records import ModelGraph, Operation, Ref, Size, Slice
from taskprune.graph.sizes import AttributeOf, DimOf, SizeExpr, leaves
from taskprune.replace import CONVOLUTION, ModuleReplacement
from taskprune.replace.unequal_groups import KINDS

_OPERATORS = ("aten.convolution.default", "aten._convolution.default")


@dataclass(frozen=True, slots=True)
class GroupedLayer:
    """A grouped convolution that is called as its module only.

    Attributes:
        path: Of the module.
        groups: How many.
        transposed: Whether its weight is ``[in, out / groups, *kernel]``.
        weight: Number of its weight.
        bias: Number of its bias, if it has one.
    """

    path: str
    groups: int
    transposed: bool
    weight: int
    bias: int | None


def locked_layers(graph: ModelGraph, groups: CouplingGroups) -> tuple[GroupedLayer, ...]:
    """Return the grouped convolutions some of whose channels stay, and which could be replaced."""
    layers = tuple(_grouped_layers(graph))
    free = _free_positions(groups) if layers else {}
    return tuple(
        layer
        for layer in layers
        if any(
            free[f"{layer.path}.weight", dim] < graph.values[layer.weight].shape[dim]
            for dim in (0, 1)
        )
    )


def freed_layers(
    layers: Iterable[GroupedLayer], before: CouplingGroups, after: CouplingGroups
) -> tuple[GroupedLayer, ...]:
    """Return the layers around which more channels can go with unequal groups than with equal."""
    old, new = _free_positions(before), _free_positions(after)

    def gain(layer: GroupedLayer, dim: int) -> int:
        # Along dim 1, one entry of the weight stands for one position in every group.
        times = layer.groups if dim == 1 else 1
        parts = sum(new[f"{layer.path}.weights.{g}", dim] for g in range(layer.groups))
        return parts - times * old[f"{layer.path}.weight", dim]

    return tuple(layer for layer in layers if any(gain(layer, dim) > 0 for dim in (0, 1)))


def _free_positions(groups: CouplingGroups) -> Mapping[tuple[str, int], int]:
    """Return how many positions along each dim of each tensor can go."""
    free: defaultdict[tuple[str, int], int] = defaultdict(int)
    for member in (member for group in groups for member in group.members):
        free[member.name, member.dim] += int(np.size(member.index))
    return free


def split_layers(graph: ModelGraph, layers: Iterable[GroupedLayer]) -> ModelGraph:
    """Return the graph of the model with unequal groups in ``layers``."""
    values = list(graph.values)
    parts: dict[int, tuple[Ref, ...]] = {}
    names: dict[int, list[tuple[str, int]]] = {}

    def split(number: int, name: str, n_parts: int) -> None:
        old = graph.values[number]
        rows = old.shape[0] // n_parts
        names[number] = []
        for g in range(n_parts):
            new = len(values)
            shape = (rows, *old.shape[1:])
            values.append(replace(old, id=new, shape=shape, name=f"{name}.{g}", storage=new))
            names[number].append((f"{name}.{g}", new))
        parts[number] = tuple(Ref(new) for _, new in names[number])

    layers = tuple(layers)
    for layer in layers:
        split(layer.weight, f"{layer.path}.weights", layer.groups)
        if layer.bias is not None:
            split(layer.bias, f"{layer.path}.biases", layer.groups)
    return replace(
        graph,
        values=tuple(values),
        operations=tuple(_with_parts(operation, parts) for operation in graph.operations),
        parameters=dict(
            entry
            for name, number in graph.parameters.items()
            for entry in names.get(number, [(name, number)])
        ),
        replacements=(
            *graph.replacements,
            *(ModuleReplacement(layer.path, CONVOLUTION) for layer in layers),
        ),
    )


def _with_parts(operation: Operation, parts: Mapping[int, tuple[Ref, ...]]) -> Operation:
    weight = operation.arguments.get("weight")
    if not isinstance(weight, Ref) or weight.value not in parts:
        return operation
    bias = operation.arguments.get("bias")
    own = {"weight": parts[weight.value]}
    if isinstance(bias, Ref):
        own["bias"] = parts[bias.value]
    return replace(operation, arguments={**operation.arguments, **own})


def _grouped_layers(graph: ModelGraph) -> Iterator[GroupedLayer]:
    """Yield the layers that a module with unequal groups can take the place of."""
    runs: dict[str, list[Operation]] = {}
    for operation in graph.operations:
        if operation.target in _OPERATORS and int(operation.arguments["groups"]) > 1:
            runs.setdefault(operation.call.module, []).append(operation)
    found = [layer for path, own in runs.items() if (layer := _layer(graph, path, own[0]))]
    if not found:
        return
    held = {n: layer.path for layer in found for n in (layer.weight, layer.bias) if n is not None}
    spoilt = _used_elsewhere(graph, held, {layer.path for layer in found})
    yield from (layer for layer in found if layer.path not in spoilt)


def _layer(graph: ModelGraph, path: str, operation: Operation) -> GroupedLayer | None:
    weight = graph.parameters.get(f"{path}.weight")
    if not path or weight is None or graph.modules.get(path) not in KINDS:
        return None
    groups, transposed = int(operation.arguments["groups"]), bool(operation.arguments["transposed"])
    rows, columns = graph.values[weight].shape[:2]
    # With one channel a group, the group goes as a whole.
    if 1 in (rows // groups, columns):
        return None
    bias = operation.arguments.get("bias")
    number = graph.parameters.get(f"{path}.bias")
    if isinstance(bias, Ref) and bias.value != number:
        return None
    return GroupedLayer(path, groups, transposed, weight, number)


def _used_elsewhere(graph: ModelGraph, held: Mapping[int, str], paths: set[str]) -> set[str]:
    """Return the paths whose tensors or sizes other code than the layer's own reads."""
    spoilt: set[str] = set()
    own_calls: set[int] = set()
    for operation in graph.operations:
        for number in operation.operands:
            path = held.get(number)
            if path is None:
                continue
            if operation.target in _OPERATORS and operation.call.module == path:
                own_calls.add(id(operation.call))
            else:
                spoilt.add(path)
    read = [guard.left for guard in graph.guards]
    read += [guard.right for guard in graph.guards if guard.right is not None]
    for call in graph.calls:
        if id(call) not in own_calls:
            read += _expressions((*call.args, *call.kwargs.values()))
    for leaf in (leaf for expr in read for leaf in leaves(expr)):
        if isinstance(leaf, AttributeOf):
            if leaf.module in paths and leaf.path[0] in ("in_channels", "out_channels"):
                spoilt.add(leaf.module)
        elif isinstance(leaf, DimOf) and leaf.value in held:
            spoilt.add(held[leaf.value])
    return spoilt


def _expressions(values: Iterable[Any]) -> Iterator[SizeExpr]:
    for value in values:
        if isinstance(value, Size):
            yield value.expr
        elif isinstance(value, tuple):
            yield from _expressions(value)
        elif isinstance(value, Slice):
            yield from _expressions((value.start, value.stop, value.step))
