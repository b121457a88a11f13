"""Which tasks each parameter can influence, from the graph alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from taskprune.graph.records import ModelGraph, Ref

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
        for value in references(tuple(operation.arguments.values())):
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


def references(arguments: tuple[Any, ...]) -> Iterator[int]:
    """Iterate over the value numbers among recorded arguments."""
    for argument in arguments:
        if isinstance(argument, Ref):
            yield argument.value
        elif isinstance(argument, tuple):
            yield from references(argument)
