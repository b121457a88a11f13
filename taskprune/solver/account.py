"""What is gone, what that costs, and what the budget has room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from taskprune.cost import Cost
from taskprune.cost.names import kind_of
from taskprune.coupling.groups import IntArray
from taskprune.solver.blocks import FloatArray
from taskprune.solver.removable import Removable


def price_power(cost: str) -> float:
    """Return how much a channel's price counts where a cost is bounded.

    Channels go in the order of ``score / saving ** power``. Where parameters are bounded it is the
    plain order of scores: score per parameter was no better in our trials, and worse where half of
    the parameters or more went, because cheap channels with low scores are many, and their effects
    add up to more than first order predicts. Elsewhere the price has to count: a few layers hold
    most of the compute, and the plain order passes them by, removing twice as many parameters for
    the same multiply-adds. From powers of 0.5 to 3 the metrics differed by less than calibrations.
    """
    return 0.0 if kind_of(cost) == "params" else 1.0


class Account:
    """How many channels of each group are gone, and what that costs.

    Args:
        parts: What may go, by group.
        models: Every cost by name, over the same groups in the same order.
        limits: Upper bounds on some of them, in the same units.

    Attributes:
        full: Channels of each group. Shape ``[n_groups]``.
        removed: How many of them are gone. Shape ``[n_groups]``.
        original: Each cost of the whole model.
        limits: The bounds.
        exceeded: Those that the whole model does not meet.
        power: How much prices count, see :func:`price_power`.
        costs: The bounded costs at present.
    """

    def __init__(
        self,
        parts: Sequence[Removable],
        models: Mapping[str, Cost],
        limits: Mapping[str, int],
    ) -> None:
        self.parts = tuple(parts)
        self.models = dict(models)
        self.full: IntArray = np.array([p.group.n_channels for p in self.parts], dtype=np.int64)
        self.removed: IntArray = np.zeros(len(self.parts), dtype=np.int64)
        self.original = {name: model.value() for name, model in self.models.items()}
        self.limits = dict(limits)
        self.costs = {name: self.original[name] for name in self.limits}
        self.exceeded = tuple(name for name in self.limits if self.shortfall(name) > 0)
        self.power = max(price_power(name) for name in self.exceeded or self.limits)

    def span(self, name: str) -> int:
        """Return how much of a cost the budget asks to remove, at least 1."""
        return max(1, self.original[name] - self.limits[name])

    def shortfall(self, name: str, removed: IntArray | None = None) -> float:
        """Return how far a cost is above its bound: 1 at the start, 0 at the bound."""
        return (self.cost(name, removed) - self.limits[name]) / self.span(name)

    def excess(self, removed: IntArray | None = None) -> float:
        """By how much the bounds are exceeded: 0 if all hold, 1 each at the start."""
        return sum(max(0.0, self.shortfall(name, removed)) for name in self.limits)

    def miss(self, removed: IntArray | None = None) -> float:
        """How far below the tightest bound the model is, as a fraction of the original."""
        return min(
            (limit - self.cost(name, removed)) / max(1, self.original[name])
            for name, limit in self.limits.items()
        )

    def cost(self, name: str, removed: IntArray | None = None) -> int:
        """Return a bounded cost at present, or with so many channels of every group gone."""
        return self.costs[name] if removed is None else self.models[name].value(self.full - removed)

    def with_removed(self, group: int, n_channels: int) -> IntArray:
        """Return the channels gone per group if ``n_channels`` of one were."""
        removed: IntArray = self.removed.copy()
        removed[group] = n_channels
        return removed

    def move_to(self, removed: IntArray) -> None:
        """Let so many channels of every group be gone."""
        self.removed = removed
        self.costs = {name: self.cost(name, removed) for name in self.limits}

    def prices(self) -> FloatArray:
        """Saving of one more channel per group, in shares of what is still exceeded."""
        prices = np.zeros(len(self.parts))
        for name, limit in self.limits.items():
            if self.costs[name] > limit:
                marginals = self.models[name].marginals(self.full - self.removed)
                prices += marginals / (self.costs[name] - limit)
        return prices

    def fits(self, removed: IntArray) -> bool:
        """Whether all bounds hold when so many channels of every group are gone."""
        return all(self.cost(name, removed) <= limit for name, limit in self.limits.items())

    def lowest(self, name: str) -> int:
        """Return a cost with everything removed that may be."""
        most = np.array([len(part.order) for part in self.parts], dtype=np.int64)
        return self.cost(name, most)
