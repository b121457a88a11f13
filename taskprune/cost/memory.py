r"""Peak memory of activations as a function of how many channels each group keeps.

A tensor that the forward pass makes takes memory from the operator that makes it to the last one
that reads it or a view of it; outputs of the model stay. With :math:`S_j(k)` bytes of memory *j*,

.. math:: V(k) = \max_i \sum_{j \text{ in use at } i} S_j(k)

over all operators *i*. This is what a pass needs at least: Python code that holds on to tensors it
does not read again, and work space inside operators, come on top. Parameters, buffers and inputs
exist before the pass and are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
from numpy.typing import NDArray

from taskprune.cost.model import CostModel
from taskprune.coupling.groups import CouplingGroups, IntArray, LinearForm, TensorForm

NEAR_PEAK = 0.02
"""Distance from the peak, as a fraction of it, at which an operator still counts in the prices."""


class ActivationMemory:
    """Peak bytes of activations in one forward pass on the traced inputs; a ``Cost``.

    Where several operators are near the peak, dropping a channel lowers it only if all of them have
    it, and no channel would seem worth anything. :meth:`marginals` therefore weighs operators
    smoothly by how close they come to the peak, as the gradient of a soft maximum does; values
    are exact.

    Args:
        groups: The model's coupling groups.
    """

    def __init__(self, groups: CouplingGroups) -> None:
        in_use = _in_use(groups)
        numbers: dict[tuple[object, ...], int] = {}
        shapes: list[tuple[int, tuple[LinearForm, ...]]] = []
        entries: list[tuple[int, int, float]] = []
        for time, tensors in enumerate(in_use):
            for tensor in tensors:
                factors = tuple(factor for size in tensor.shape for factor in size.factors)
                key = tuple(
                    sorted((f.constant, tuple(sorted(f.coefficients.items()))) for f in factors)
                )
                if key not in numbers:
                    numbers[key] = len(shapes)
                    shapes.append((1, factors))
                size = tensor.dtype.itemsize * prod(s.multiplier for s in tensor.shape)
                entries.append((time, numbers[key], size / prod(s.divisor for s in tensor.shape)))
        # Products of sizes once each; how many bytes of each are in use at each operator.
        self.products = CostModel(groups, shapes)
        self.bytes: NDArray[np.float64] = np.zeros((max(1, len(in_use)), len(shapes)))
        for time, shape, n_bytes in entries:
            self.bytes[time, shape] += n_bytes
        self.bytes = _not_covered(self.bytes)

    def _values(self, counts: IntArray) -> NDArray[np.float64]:
        """Return bytes in use at each operator that may be the peak."""
        sizes = self.products.sizes(counts)
        values: NDArray[np.float64] = self.bytes @ sizes[self.products.factors].prod(axis=1)
        return values

    def value(self, kept: Mapping[str, int] | IntArray | None = None) -> int:
        """Return the peak in bytes."""
        return int(self._values(self.products.counts(kept)).max())

    def marginals(self, kept: Mapping[str, int] | IntArray | None = None) -> IntArray:
        """Return about what one more channel of each group would save, see the class."""
        model = self.products
        counts = model.counts(kept)
        values = self._values(counts)
        peak = max(float(values.max()), 1.0)
        weights = np.exp((values - peak) / (NEAR_PEAK * peak))
        per_product = (weights / weights.sum()) @ self.bytes
        sizes = model.sizes(counts)[model.factors[model.pair_term]]
        fewer = sizes.prod(axis=1) - (sizes - model.pair_slopes).prod(axis=1)
        saved = np.zeros(len(model.names))
        np.add.at(saved, model.pair_group, per_product[model.pair_term] * fewer)
        marginals: IntArray = np.ceil(saved).astype(np.int64)
        return marginals


def _in_use(groups: CouplingGroups) -> list[list[TensorForm]]:
    """Return the memory in use during each operator, largest tensor of each."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    owner: dict[int, TensorForm] = {}
    full = groups.full_counts()
    for time, site in enumerate(groups.sites):
        outputs = [tensor for tensor in site.outputs if tensor is not None]
        for tensor in (*site.inputs, *outputs):
            if not tensor.is_activation:
                continue
            memory = tensor.storage
            first.setdefault(memory, time)
            last[memory] = time
            known = owner.get(memory)
            # A slice of it may be seen before, or be all that is ever read.
            if known is None or prod(known.sizes(full)) < prod(tensor.sizes(full)):
                owner[memory] = tensor
    in_use: list[list[TensorForm]] = [[] for _ in groups.sites]
    for memory, tensor in owner.items():
        for time in range(first[memory], last[memory] + 1):
            in_use[time].append(tensor)
    return in_use


def _not_covered(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out rows that another one is nowhere below: they are never the only peak."""
    rows = np.unique(rows, axis=0)
    kept: list[NDArray[np.float64]] = []
    for row in rows[np.argsort(-rows.sum(axis=1), kind="stable")]:
        if not kept or not (np.stack(kept) >= row).all(axis=1).any():
            kept.append(row)
    return np.stack(kept)
