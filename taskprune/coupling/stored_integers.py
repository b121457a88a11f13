"""Integers that modules store, that equal a size which can shrink, and that do not follow.

Nothing that a trace sees ties such an integer to the size, so nothing is guessed: it stays, and the
plan says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator

from torch import nn

from taskprune.coupling.groups import StoredInteger
from taskprune.coupling.standard_sizes import PLACES
from taskprune.graph.attributes import Place
from taskprune.graph.records import ModelGraph
from taskprune.graph.sizes import AttributeOf
from taskprune.replace import CONVOLUTION


def stored_integers(
    graph: ModelGraph,
    sizes: Iterable[tuple[str, int, int]],
    followed: Container[AttributeOf],
    read: Container[AttributeOf],
) -> Iterator[StoredInteger]:
    """Yield the integers that do not follow and equal a size below a module that holds them.

    Args:
        graph: The traced model.
        sizes: Name of a tensor or path of a module, dim and length of each dim that can shrink.
        followed: Attributes that get a new value.
        read: Attributes that the recorded code computes with.
    """
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name, first in graph.tied.items():
        names[first].append(name)
    below: defaultdict[tuple[str, int], dict[tuple[str, int], None]] = defaultdict(dict)
    for first, dim, length in sizes:
        for name in (first, *names[first]):
            for above in _upwards(name):
                below[above, length][first, dim] = None
    gone = {r.path for r in graph.replacements if r.kind == CONVOLUTION}
    for (module, path), value in graph.attributes.items():
        attribute = AttributeOf(module, path)
        kind = graph.modules.get(module, nn.Module)
        if attribute in followed or path[0] in _settings(kind, replaced=module in gone):
            continue
        holders = _holders(graph, (module, path))
        equal = dict.fromkeys(size for holder in holders for size in below[holder, value])
        if equal:
            yield StoredInteger(module, path, value, tuple(equal), attribute in read)


def _upwards(name: str) -> Iterator[str]:
    """Yield a path and those of all modules above it."""
    yield name
    while name:
        name = name.rpartition(".")[0]
        yield name


def _holders(graph: ModelGraph, place: Place) -> Iterator[str]:
    """Yield the modules that hold an integer, by containers that they share too."""
    module, path = place
    yield module
    for length in range(1, len(path)):
        yield from graph.shared_attributes.get((module, path[:length]), ())


def _settings(kind: type[nn.Module], *, replaced: bool) -> frozenset[str]:
    """Return the names that torch's own classes declare and that are no sizes, such as strides."""
    own = [base for base in kind.__mro__ if base.__module__.split(".")[0] == "torch"]
    declared = {
        name
        for base in own
        for name in (*vars(base).get("__annotations__", ()), *vars(base).get("__constants__", ()))
    }
    told = {name for layer, places in PLACES if issubclass(kind, layer) for name in places}
    return frozenset(declared if replaced else declared - told)
