r"""How much each of several bounds counts, so that all of them are reached together.

Taking the cheapest channels for one bound, then for the next, removes too much: the second bound
might have been met on the way. Here the bounds are replaced by one, their weighted sum

.. math:: \sum_b \mu_b \frac{V_b(k) - L_b}{V_b(0) - L_b} \le 0, \qquad \sum_b \mu_b = 1,

(the surrogate relaxation of Glover, Operations Research 16, 1968) and the multipliers are searched
for: a bound that the solution exceeds gets more weight, one that it stays below gets less. What is
optimal for the weighted sum and meets every bound is optimal for all of them. The search goes
by the sign of each violation, with a step of its own for each multiplier, as Rprop does; the
costs are not convex, so this is a heuristic and the landing does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taskprune.coupling.groups import IntArray
from taskprune.solver.account import Account, price_power
from taskprune.solver.blocks import Blocks, FloatArray, Table

ITERATIONS = 40
CLOSE = 0.002
"""Violation, as a share of what the budget asks to remove, that is left to the landing."""

SHARE_PER_ROUND = 0.5
"""Share of the weighted excess that goes before savings are computed again."""


def balanced(account: Account, blocks: Sequence[Blocks]) -> IntArray:
    """Return how many channels of each group should go to come close to all bounds at once.

    Args:
        account: The costs and the bounds, of which those count that are exceeded.
        blocks: The steps in which each group's channels can go.
    """
    relaxation = _Relaxation(account, blocks)
    n_bounds = len(account.exceeded)
    # Where meeting one bound meets the others on the way, those do not bind.
    best, least = account.removed, np.inf
    for one in np.eye(n_bounds):
        removed, violations = relaxation.solve(one)
        if violations.max() <= CLOSE:
            return removed
        if violations.max() < least:
            best, least = removed, float(violations.max())
    logs, steps, signs = np.zeros(n_bounds), np.ones(n_bounds), np.zeros(n_bounds)
    for _ in range(ITERATIONS):
        weights = np.exp(logs - logs.max())
        removed, violations = relaxation.solve(weights / weights.sum())
        if violations.max() < least:
            best, least = removed, float(violations.max())
        if least <= CLOSE:
            break
        now = np.sign(violations)
        steps *= np.where(now * signs < 0, 0.5, np.where(now * signs > 0, 1.3, 1.0))
        logs += steps * now
        signs = now
    return best


class _Relaxation:
    """The budget with one weighted bound in place of all."""

    def __init__(self, account: Account, blocks: Sequence[Blocks]) -> None:
        self.account = account
        self.table = Table(blocks)
        self.names = account.exceeded
        self.powers = np.array([price_power(name) for name in self.names])

    def violations(self, removed: IntArray) -> FloatArray:
        found = [self.account.shortfall(name, removed) for name in self.names]
        return np.array(found, dtype=np.float64)

    def solve(self, weights: FloatArray) -> tuple[IntArray, FloatArray]:
        """Return the channels that go for these multipliers, and how far off each bound is."""
        account = self.account
        removed: IntArray = np.zeros_like(account.full)
        violations = self.violations(removed)
        power = float(weights @ self.powers)
        excess = float(weights @ violations)
        while excess > CLOSE / 2:
            prices = np.zeros(len(account.full))
            for name, weight in zip(self.names, weights, strict=True):
                marginals = account.models[name].marginals(account.full - removed)
                prices += weight * marginals / account.span(name)
            target = (1 - SHARE_PER_ROUND) * excess if excess > 4 * CLOSE else 0.0
            after = self._cheapest(prices, power, weights, target, removed)
            if np.array_equal(after, removed):
                break
            removed = after
            violations = self.violations(removed)
            excess = float(weights @ violations)
        return removed, violations

    def _cheapest(
        self,
        prices: FloatArray,
        power: float,
        weights: FloatArray,
        target: float,
        removed: IntArray,
    ) -> IntArray:
        """Take the blocks below the lowest threshold that brings the excess to ``target``."""
        scales = np.where(prices > 0, np.maximum(prices, 1e-300) ** power, 0.0)
        lowest, highest = self.table.key_range(scales)
        low, high = lowest, highest
        for _ in range(40):
            middle = (low + high) / 2
            after = np.maximum(removed, self.table.below(np.exp(middle) * scales, scales > 0))
            if float(weights @ self.violations(after)) > target:
                low = middle
            else:
                high = middle
            if high - low < 1e-9:
                break
        return np.maximum(removed, self.table.below(np.exp(high) * scales, scales > 0))
