"""Sizes that standard layers store, such as ``linear.in_features``.

Each is the length of a dim of the layer's tensors, or a known multiple or part of it. Pruning keeps
that true, so code that reads one reads that length.
"""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from taskprune.coupling.context import Analysis
from taskprune.coupling.forms import Classes, Form, constant, current_value, solve_for
from taskprune.coupling.groups import FreezeReason
from taskprune.coupling.provenance import Assignment
from taskprune.coupling.unit_table import Constraint
from taskprune.graph.records import ModelGraph
from taskprune.graph.sizes import AttributeOf, Computed, Constant, SizeExpr, leaves

Places = Mapping[str, tuple[str, int]]
"""Attribute of a layer: the tensor and the dim whose length it is."""

PLACES: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Places], ...] = (
    (_ConvTransposeNd, {"in_channels": ("weight", 0), "out_channels": ("weight", 1)}),
    (_ConvNd, {"out_channels": ("weight", 0), "in_channels": ("weight", 1)}),
    (nn.Linear, {"out_features": ("weight", 0), "in_features": ("weight", 1)}),
    (
        nn.Bilinear,
        {
            "out_features": ("weight", 0),
            "in1_features": ("weight", 1),
            "in2_features": ("weight", 2),
        },
    ),
    (
        (nn.Embedding, nn.EmbeddingBag),
        {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
    ),
    (_NormBase, {"num_features": ("weight", 0)}),
    (nn.GroupNorm, {"num_channels": ("weight", 0)}),
    ((nn.LayerNorm, nn.RMSNorm), {"normalized_shape": ("weight", 0)}),
    (nn.PReLU, {"num_parameters": ("weight", 0)}),
    (
        nn.RNNBase,
        {
            "input_size": ("weight_ih_l0", 1),
            "hidden_size": ("weight_ih_l0", 0),
            "proj_size": ("weight_hh_l0", 1),
        },
    ),
    (nn.RNNCellBase, {"input_size": ("weight_ih", 1), "hidden_size": ("weight_ih", 0)}),
)
"""What layers of torch tell. A convolution's groups share a dim, gates stack up in one."""


def add_standard_sizes(analysis: Analysis) -> None:
    """Demand of every attribute of a standard layer that the code reads that it stays true."""
    read = {leaf: None for c in analysis.units.constraints for leaf in leaves(c.expr)}
    layers = _Layers(analysis)
    for attribute in read:
        if isinstance(attribute, AttributeOf):
            analysis.units.constraints += layers.truths(attribute)


def standard_sizes(
    analysis: Analysis, classes: Classes, assignment: Assignment
) -> dict[AttributeOf, Form]:
    """Return the value of every attribute of a standard layer that the code does not read."""
    layers = _Layers(analysis)
    stored = {AttributeOf(*place): value for place, value in analysis.graph.attributes.items()}
    unread = {a: constant(n) for a, n in stored.items() if a.path == ("groups",)}
    known = ChainMap(assignment.forms, unread)
    sizes: dict[AttributeOf, Form] = {}
    for attribute in (a for a in stored if a not in known):
        found = [_solved(truth, classes, known) for truth in layers.truths(attribute)]
        first = found[0] if found else None
        if first is not None and all(form and form.equals(first) for form in found):
            sizes[attribute] = first
    return sizes


def _solved(truth: Constraint, classes: Classes, known: Mapping[AttributeOf, Form]) -> Form | None:
    """Return the value of the attribute that makes it true, if one does."""
    target = classes.axis_form(truth.axis)
    found = target and solve_for(truth.expr, target, lambda _: None, known)
    return found[1] if found else None


class _Layers:
    """Knows the tensors that the layers of a graph describe."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        self._returned: defaultdict[str, list[int]] = defaultdict(list)
        for output in analysis.graph.module_outputs:
            if not output.path:
                self._returned[output.module].append(output.value)

    def truths(self, attribute: AttributeOf) -> list[Constraint]:
        """Return what must hold for an attribute to tell the truth; nothing if it tells no size."""
        graph, (name, *position) = self._analysis.graph, attribute.path
        kind = graph.modules.get(attribute.module, nn.Module)
        places = next((places for layer, places in PLACES if issubclass(kind, layer)), {})
        if name not in places or any(isinstance(p, str) for p in position):
            return []
        tensor, dim = places[str(name)]
        numbers = self._tensor(attribute.module, tensor)
        if not numbers and issubclass(kind, _NormBase | nn.GroupNorm):
            # Without scale and statistics, it tells how many channels it passes on.
            numbers, dim = self._returned.get(attribute.module, []), 1
        dim += sum(int(p) for p in position)
        where = FreezeReason("attribute", f"the code reads {attribute}", "", attribute.module)
        truths = []
        for number in numbers:
            shape = graph.values[number].shape
            expr = _length(graph, kind, attribute, shape[dim]) if dim < len(shape) else attribute
            if dim >= len(shape) or current_value(self._analysis, expr) != shape[dim]:
                return []  # not the layer's own size, whatever it is
            truths.append(Constraint(expr, self._analysis.state(number).axes[dim], where))
        return truths

    def _tensor(self, module: str, name: str) -> list[int]:
        """Return the number of a layer's tensor.

        Of one that a hook computes, that of what it is computed from; of a parametrised one, that
        of what it became.
        """
        graph = self._analysis.graph
        for tried in (name, f"{name}_v", f"{name}_orig", "running_mean"):
            path = f"{module}.{tried}" if module else tried
            first = graph.tied.get(path, path)
            number = graph.parameters.get(first, graph.buffers.get(first))
            if number is not None:
                return [number]
        return self._returned.get(f"{module}.parametrizations.{name}", [])


def _length(
    graph: ModelGraph, kind: type[nn.Module], attribute: AttributeOf, length: int
) -> SizeExpr:
    """Return the length of the dim that an attribute describes in terms of the attribute."""
    stored = graph.attributes[attribute.module, attribute.path]
    groups = AttributeOf(attribute.module, ("groups",))
    if issubclass(kind, _ConvNd) and (groups.module, groups.path) in graph.attributes:
        if length != stored:
            return Computed("//", attribute, groups)
    elif issubclass(kind, nn.RNNBase | nn.RNNCellBase) and stored and length != stored:
        return Computed("*", Constant(length // stored), attribute)
    return attribute
