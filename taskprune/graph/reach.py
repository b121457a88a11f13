"""How far things reach in the graph: parameters to tasks, the inputs of the model to operators."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from taskprune.graph.records import ModelGraph, Operation

if TYPE_CHECKING:
    from networkx import DiGraph


def tasks_reached(graph: ModelGraph) -> dict[str, frozenset[str]]:
    """Return, for every parameter and buffer, the tasks whose outputs lie downstream of it.

    Values that an operator writes in place are followed through the memory that views share, so
    the answer errs on the side of too many tasks, never too few.
    """
    from networkx import ancestors  # takes longer to import than all of taskprune

    flow = _flow(graph)
    reached: dict[int, set[str]] = {}
    for task, paths in graph.tasks.items():
        owned = [output.value for output in graph.outputs if output.path in paths]
        upstream = {value for value in owned if value in flow}
        for value in list(upstream):
            upstream |= ancestors(flow, value)
        for value in (*upstream, *owned):
            if isinstance(value, int):
                reached.setdefault(value, set()).add(task)
    named = {**graph.parameters, **graph.buffers}
    return {name: frozenset(reached.get(value, ())) for name, value in named.items()}


def _flow(graph: ModelGraph) -> DiGraph[Any]:
    """Return the flow of data between value numbers, operators and shared memory."""
    from networkx import DiGraph

    flow: DiGraph[Any] = DiGraph()
    written: set[int] = set()
    for number, operation in enumerate(graph.operations):
        node = ("operation", number)
        for value in operation.operands:
            flow.add_edge(value, node)
            storage = graph.values[value].storage
            if storage in written:
                flow.add_edge(("memory", storage), node)
        for made in operation.outputs:
            if made is not None and made not in operation.mutates:
                flow.add_edge(node, made)
        for value in operation.mutates:
            storage = graph.values[value].storage
            written.add(storage)
            flow.add_edge(node, ("memory", storage))
    for output in graph.outputs:
        storage = graph.values[output.value].storage
        if storage in written:
            flow.add_edge(("memory", storage), output.value)
    return flow


Inputs: TypeAlias = frozenset[str]
"""Paths of inputs of the model."""

_NONE: Inputs = frozenset()
_SHAPE_ALONE = ("new_", "zeros_like", "ones_like", "full_like", "empty_like", "rand")
"""How operators are called that take the size of a tensor, but nothing of what is in it."""


@dataclass(frozen=True, slots=True)
class InputMeeting:
    """A tensor of some inputs that an operator brings together with others.

    Attributes:
        carried: Inputs that the tensor was computed from.
        joined: Inputs that the operator works on, more than those.
        modules: Modules that hand the tensor to the operator, with the inputs of all that they
            return, the outermost first. Empty where it is no module's output, or is written to
            afterwards.
        operator: Such as ``"aten.cat.default"``.
        source: ``file.py:line`` of the user's code that called it.
    """

    carried: Inputs
    joined: Inputs
    modules: tuple[tuple[str, Inputs], ...]
    operator: str
    source: str


@dataclass(frozen=True)
class InputReach:
    """Where the inputs of a model go.

    Attributes:
        inputs: Paths of all inputs, see :class:`~taskprune.graph.records.GraphInput`.
        tensors: For each parameter and buffer, the inputs of what it is applied to. A parameter of
            the stem of the first sensor's branch has that sensor's input.
        meetings: Where inputs meet, in the first recorded pass.
        values: For each tensor of the forward pass, the inputs that it was computed from.
    """

    inputs: tuple[str, ...] = ()
    tensors: Mapping[str, Inputs] = field(default_factory=dict)
    meetings: tuple[InputMeeting, ...] = ()
    values: Mapping[int, Inputs] = field(default_factory=dict, repr=False)


def follow_inputs(graph: ModelGraph) -> InputReach:
    """Follow every input of the model through all operators.

    What an operator writes in place is followed through the memory that views share, so the answer
    errs on the side of too many inputs, never too few. Operators that take a tensor's size alone
    take nothing of the inputs behind it.
    """
    walk = _Walk(graph)
    for operation in graph.operations:
        walk.see(operation)
    named = {**graph.parameters, **graph.buffers}
    return InputReach(
        inputs=tuple(dict.fromkeys(entry.path for entry in graph.inputs)),
        tensors={name: walk.applied_to.get(value, _NONE) for name, value in named.items()},
        meetings=walk.meetings(),
        values=walk.reach,
    )


class _Walk:
    """One pass over the operators, in the order they ran."""

    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph
        self.reach: dict[int, Inputs] = defaultdict(lambda: _NONE)
        self.written: dict[int, Inputs] = defaultdict(lambda: _NONE)
        # Parameters behind values that no input has reached yet: a sum of weights, a query.
        self.origins: dict[int, frozenset[int]] = {
            value: frozenset((value,))
            for value in (*graph.parameters.values(), *graph.buffers.values())
        }
        self.applied_to: dict[int, Inputs] = defaultdict(lambda: _NONE)
        self.met: list[tuple[int, Inputs, Inputs, Operation]] = []
        for entry in graph.inputs:
            self.reach[entry.value] |= {entry.path}

    def see(self, operation: Operation) -> None:
        """Hand what the arguments carry on to what the operator makes and writes."""
        name = operation.target.split(".")[1]
        if name.startswith(_SHAPE_ALONE):
            return
        values = tuple(dict.fromkeys(operation.operands))
        carried = {value: self._carried(value) for value in values}
        joined = _NONE.union(*carried.values())
        if joined:
            for value in values:
                for origin in () if carried[value] else self.origins.get(value, ()):
                    self.applied_to[origin] |= joined
                if carried[value] and carried[value] != joined:
                    self.met.append((value, carried[value], joined, operation))
        origins = frozenset[int]().union(*(self.origins.get(v, frozenset()) for v in values))
        for made in operation.outputs:
            if made is not None and made not in operation.mutates:
                self.reach[made] |= joined
                if origins and not joined:
                    self.origins[made] = origins
        for value in operation.mutates:
            self.written[self.graph.values[value].storage] |= joined

    def _carried(self, value: int) -> Inputs:
        return self.reach[value] | self.written[self.graph.values[value].storage]

    def meetings(self) -> tuple[InputMeeting, ...]:
        """Return where inputs meet, with the modules that return what meets."""
        mode = self.graph.modes[0] if self.graph.modes else "eval"
        returned: dict[str, Inputs] = defaultdict(lambda: _NONE)
        modules: dict[int, list[str]] = defaultdict(list)
        for output in self.graph.module_outputs:
            if output.mode == mode:
                returned[output.module] |= self._carried(output.value)
                modules[output.value].insert(0, output.module)
        found = {}
        for value, carried, joined, operation in self.met:
            if operation.mode == mode and self.graph.values[value].is_floating:
                found[value, joined] = InputMeeting(
                    carried,
                    joined,
                    tuple(
                        (path, returned[path])
                        for path in dict.fromkeys(modules[value])
                        if not _inside(operation, path) and not self._written_outside(value, path)
                    ),
                    operation.target,
                    operation.call.source,
                )
        return tuple(found.values())

    def _written_outside(self, value: int, path: str) -> bool:
        """Whether code outside of a module writes to what it returned."""
        storage = self.graph.values[value].storage
        return any(
            self.graph.values[written].storage == storage and not _inside(operation, path)
            for operation in self.graph.operations
            for written in operation.mutates
        )


def _inside(operation: Operation, path: str) -> bool:
    """Whether a module's own forward runs the operator."""
    return not path or f"{operation.call.module}.".startswith(f"{path}.")
