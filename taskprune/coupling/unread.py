"""What could read the channels of a group although no traced forward does.

A parameter that no operator read belongs to code that has not run: the head of another task, a
branch that starts at some epoch, an expert without tokens, a second entry point. What that code
will read is not known. Where it stands is: in a module that holds the parameter. There it finds
the tensors which that module's own code handled, what the module's children returned, and what
their children would return if it called those by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from taskprune.coupling.axes import Axis, axis_size, tracked_units
from taskprune.coupling.context import Analysis
from taskprune.coupling.forms import Classes
from taskprune.coupling.groups import CouplingGroups, IntArray
from taskprune.graph.records import ModelGraph

LEVELS_BELOW = 2
"""How many names below a module that of another one may lie for its code to call it by itself."""

PIECES = 4
"""Into how many equal pieces of channels code may cut a tensor before it reads one of them."""


@dataclass(frozen=True, slots=True)
class _Unread:
    """A parameter or buffer that no operator read.

    Attributes:
        name: Its name.
        widths: Of the tensors that it can be combined with entry by entry.
        reads: Whether it can read several tensors laid side by side, or positions flattened.
    """

    name: str
    widths: frozenset[int]
    reads: bool

    def fits(self, width: int) -> bool:
        """Whether it could read a tensor with so many channels, or read along with it."""
        if width in self.widths or not self.reads:
            return width in self.widths
        return any(
            width < own or (width % own == 0 and width // own <= PIECES) for own in self.widths
        )


def with_readers(analysis: Analysis, classes: Classes, groups: CouplingGroups) -> CouplingGroups:
    """Return the groups, each with the unread parameters and buffers that could read it."""
    graph = analysis.graph
    # Code stands in modules that run: a list of modules has none.
    run = {"", *(output.module for output in graph.module_outputs)}
    holders: defaultdict[str, list[_Unread]] = defaultdict(list)
    for unread in _unread(graph):
        for holder in run.intersection(_above(unread.name)):
            holders[holder].append(unread)
    if not holders:
        return groups
    group_of = _groups_of_classes(analysis, classes, groups)
    readers: defaultdict[int, dict[str, None]] = defaultdict(dict)
    done: set[tuple[str, int, int]] = set()
    for value, places in _places(graph).items():
        state = analysis.states.get(value)
        for axis in () if state is None else state.axes:
            for place in places & holders.keys():
                _note(axis, place, holders[place], classes, group_of, done, readers)
    return replace(
        groups,
        groups=tuple(
            replace(group, readers=tuple(readers[number])) if number in readers else group
            for number, group in enumerate(groups)
        ),
    )


def _note(
    axis: Axis,
    place: str,
    unread: Iterable[_Unread],
    classes: Classes,
    group_of: IntArray,
    done: set[tuple[str, int, int]],
    readers: Mapping[int, dict[str, None]],
) -> None:
    size = axis_size(axis)
    for units in tracked_units(axis):
        if (place, id(units), size) in done:
            continue
        done.add((place, id(units), size))
        names = dict.fromkeys(each.name for each in unread if each.fits(size))
        for number in np.unique(group_of[classes.labels[units]]) if names else ():
            if number >= 0:
                readers[int(number)].update(names)


def _unread(graph: ModelGraph) -> list[_Unread]:
    read = {output.value for output in graph.outputs}
    for operation in graph.operations:
        read.update(operation.operands)
    return [
        _of_shape(graph, name, graph.values[number].shape)
        for name, number in {**graph.parameters, **graph.buffers}.items()
        if number not in read and graph.values[number].is_floating
    ]


def _of_shape(graph: ModelGraph, name: str, shape: tuple[int, ...]) -> _Unread:
    path, _, attribute = name.rpartition(".")
    kind = graph.modules.get(path, nn.Module)
    if issubclass(kind, _ConvNd) and attribute == "weight":
        groups = graph.attributes.get((path, ("groups",)), 1)
        shape = (shape[0], shape[1] * groups)  # the kernel meets positions
    elif issubclass(kind, nn.Embedding):
        shape = shape[1:]  # it reads indices
    widths = [size for size in shape if size > 1]
    return _Unread(name, frozenset(widths), reads=len(widths) > 1)


def _above(name: str) -> Iterable[str]:
    """Yield the paths of all modules that hold a parameter, the innermost first."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _places(graph: ModelGraph) -> dict[int, set[str]]:
    """Return the modules in whose code each tensor is at hand."""
    places: defaultdict[int, set[str]] = defaultdict(set)
    for operation in graph.operations:
        for value in operation.operands:
            places[value].add(operation.call.module)
        for made in operation.outputs:
            if made is not None:
                places[made].add(operation.call.module)
    for output in graph.module_outputs:
        for _, above in zip(range(LEVELS_BELOW), _above(output.module), strict=False):
            places[output.value].add(above)
    return places


def _groups_of_classes(analysis: Analysis, classes: Classes, groups: CouplingGroups) -> IntArray:
    """Return the number of the group that each class is a channel of, -1 where of none."""
    start = {(column.name, column.dim): column.start for column in analysis.units.columns}
    found: IntArray = np.full(len(classes.frozen), -1, np.int64)
    for number, group in enumerate(groups):
        member = group.members[0]
        found[classes.labels[start[member.name, member.dim] + member.index[:, 0]]] = number
    return found
