"""Sizes that standard layers store, such as ``linear.in_features``.

Pruning sets them to what the layer's tensors say, so code that reads one reads that length.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from taskprune.coupling.context import Analysis
from taskprune.coupling.groups import FreezeReason
from taskprune.coupling.unit_table import Constraint
from taskprune.graph.sizes import AttributeOf, leaves

_PLACES: tuple[tuple[type[nn.Module], Mapping[str, int]], ...] = (
    (_ConvTransposeNd, {"in_channels": 0, "out_channels": 1}),
    (_ConvNd, {"out_channels": 0, "in_channels": 1}),
    (nn.Linear, {"out_features": 0, "in_features": 1}),
    (nn.Embedding, {"num_embeddings": 0, "embedding_dim": 1}),
    (_NormBase, {"num_features": 0}),
    (nn.GroupNorm, {"num_channels": 0}),
)
"""Which dim of its weight each attribute of a layer is the length of."""


def add_standard_sizes(analysis: Analysis) -> None:
    """Demand of every attribute of a standard layer that the code reads that it stays true."""
    read = {leaf: None for c in analysis.units.constraints for leaf in leaves(c.expr)}
    for attribute in read:
        if isinstance(attribute, AttributeOf):
            _demand_truth(analysis, attribute)


def _demand_truth(analysis: Analysis, attribute: AttributeOf) -> None:
    graph = analysis.graph
    kind = graph.modules.get(attribute.module, nn.Module)
    places = next((dims for layer, dims in _PLACES if issubclass(kind, layer)), {})
    dim = places.get(str(attribute.path[0])) if len(attribute.path) == 1 else None
    value = graph.parameters.get(f"{attribute.module}.weight")
    if dim is None or value is None:
        return
    axis = analysis.state(value).axes[dim]
    # A grouped convolution's weight is shorter than what its attribute counts.
    if graph.values[value].shape[dim] == graph.attributes[attribute.module, attribute.path]:
        where = FreezeReason("attribute", f"the code reads {attribute}", "", attribute.module)
        analysis.units.constraints.append(Constraint(attribute, axis, where))
