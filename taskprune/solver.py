"""The stage ``solve``: choose the channels that go, so that the budget is met.

Within a group all channels cost the same, so they go by score alone. What is left to choose is how
many of each group go. Channels of all groups are merged into one order by

    score / saving ** cost_power

and taken off its low end. Savings depend on what has gone already (a filter gets cheaper as the
layer before it shrinks), and with several bounds on which of them are still exceeded and by how
much, so the order is made anew each time a quarter of the remaining excess is gone, at the end
after every channel. What the last step removed too much is put back, most important first.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskprune.budget import WORDS, Budget
from taskprune.cost import CostModel, CostState
from taskprune.coupling.groups import CouplingGroups, FrozenGroup, IntArray
from taskprune.errors import InfeasibleBudgetError, InputError
from taskprune.importance.scores import ChannelScores
from taskprune.plan import PruningPlan, build_plan
from taskprune.rationale import make_rationale
from taskprune.safety import Removable, Safety, bound_limits, removable

FloatArray = NDArray[np.float64]

_log = logging.getLogger("taskprune")

SHARE_PER_ROUND = 0.25
"""Share of the remaining excess that goes before savings and prices are looked at again."""

MISS = 0.005
"""By which fraction of the original cost a plan may undershoot for the sake of ``round_to``."""

DEFAULT_SAFETY = Safety()


@dataclass(frozen=True)
class CostPower:
    """How much a channel's price counts: the order is by ``score / saving ** power``.

    Attributes:
        params: Where only parameters are bounded. 0 is the plain order of scores. Score per
            parameter was no better in our trials, and worse where half of the parameters or more
            went: cheap channels with low scores are many, and their effects add up to more than
            first order predicts.
        macs: Where multiply-adds are bounded. 1 is score per saving. Here the price has to count:
            a few layers hold most of the compute, and the plain order passes them by, removing
            twice as many parameters for the same multiply-adds.
    """

    params: float = 0.0
    macs: float = 1.0

    def __post_init__(self) -> None:
        for power in (self.params, self.macs):
            if not 0 <= power < float("inf"):
                raise InputError(f"A cost power must be a number from 0 on. Found {power!r}.")

    def for_budget(self, budget: Budget) -> float:
        """Return the power for what the budget bounds."""
        return self.params if budget.macs is None else self.macs


DEFAULT_POWER = CostPower()


def solve(
    groups: CouplingGroups,
    scores: ChannelScores,
    budget: Budget,
    *,
    safety: Safety = DEFAULT_SAFETY,
    cost_power: CostPower = DEFAULT_POWER,
) -> PruningPlan:
    """Choose which channels go. Same arguments, same plan.

    Args:
        groups: The model's coupling groups.
        scores: Scores of all their channels; a lower score goes first.
        budget: What may remain. The result never costs more, and less only by what the smallest
            channels that could be put back are too large for.
        safety: Limits that hold whatever the scores say.
        cost_power: How much a channel's price counts in the order.

    Returns:
        The plan, with parameters and multiply-adds before and after, both exact. Groups that ran
        into a limit are logged; :func:`~taskprune.safety.bound_limits` returns them.

    Raises:
        InputError: The scores are not those of these groups.
        InfeasibleBudgetError: The limits leave too little to remove; says what can be reached and
            what holds most.
    """
    search = _Search(groups, removable(groups, scores, safety), budget, cost_power)
    multiples = [_multiples(part, safety.round_to) for part in search.parts]
    singles = [_multiples(part, 1) for part in search.parts]
    search.remove(multiples)
    if safety.round_to > 1:
        # Where multiples alone cannot reach the target, the target comes first.
        search.remove(singles)
    if search.excess() > 0:
        raise InfeasibleBudgetError(_infeasible(groups, search, safety))
    search.put_back(multiples)
    if safety.round_to > 1 and search.miss() > MISS:
        search.fill(safety.round_to)
    names = [group.name for group in groups]
    drop = {
        part.group.name: np.sort(part.order[:n])
        for part, n in zip(search.parts, search.removed.tolist(), strict=True)
        if n
    }
    kept = search.full - search.removed
    bounds = bound_limits(groups, scores, safety, dict(zip(names, kept.tolist(), strict=True)))
    for bound in bounds:
        _log.info("`%s` keeps %d channels: held by %s", bound.group, bound.n_kept, bound.limit)
    costs = {
        name: (model.value(), model.value(kept)) for name, model in sorted(search.models.items())
    }
    rationale = make_rationale(groups, scores, drop, {b.group: b.limit for b in bounds})
    return build_plan(groups, drop, {"params": costs["params"], "macs": costs["macs"]}, rationale)


@dataclass(frozen=True, eq=False, slots=True)
class _Blocks:
    """The steps in which the removable channels of one group go.

    Attributes:
        ends: Channels gone after each block, ascending. Shape ``[n_blocks]``.
        scores: Mean score of the channels in each block, ascending. Shape ``[n_blocks]``.
    """

    ends: IntArray
    scores: FloatArray


def _multiples(part: Removable, size: int) -> _Blocks:
    """Cut a group's order so that what is kept after each block is a multiple of ``size``."""
    n_channels = part.group.n_channels
    first = n_channels % size or size
    ends = np.arange(first, len(part.order) + 1, size, dtype=np.int64)
    if not ends.size:
        return _Blocks(ends, np.empty(0))
    starts = np.concatenate([[0], ends[:-1]])
    sums = np.add.reduceat(part.scores[: ends[-1]], starts)
    return _Blocks(ends, sums / (ends - starts))


class _Search:
    """How many channels of each group are gone, and what that costs."""

    def __init__(
        self,
        groups: CouplingGroups,
        parts: Sequence[Removable],
        budget: Budget,
        cost_power: CostPower,
    ) -> None:
        self.parts = tuple(parts)
        self.models = {"params": CostModel.of_params(groups), "macs": CostModel.of_macs(groups)}
        self.full: IntArray = self.models["params"].full
        self.removed: IntArray = np.zeros(len(self.parts), dtype=np.int64)
        original = {name: model.value() for name, model in self.models.items()}
        self.original = original
        self.limits = budget.limits(original, batch_size=groups.batch_size)
        self.power = cost_power.for_budget(budget)
        self.states: dict[str, CostState] = {name: self.models[name].at() for name in self.limits}

    def excess(self, removed: IntArray | None = None) -> float:
        """By how much the bounds are exceeded: 0 if all hold, 1 each at the start."""
        return sum(
            max(0, self._cost(name, removed) - limit) / max(1, self.original[name] - limit)
            for name, limit in self.limits.items()
        )

    def miss(self) -> float:
        """How far below the tightest bound the model is, as a fraction of the original."""
        return min(
            (limit - self.states[name].total) / max(1, self.original[name])
            for name, limit in self.limits.items()
        )

    def _cost(self, name: str, removed: IntArray | None) -> int:
        if removed is None:
            return self.states[name].total
        return self.models[name].value(self.full - removed)

    def set_removed(self, group: int, n_channels: int) -> None:
        """Let ``n_channels`` of one group be gone."""
        self.removed[group] = n_channels
        for state in self.states.values():
            state.update(group, int(self.full[group]) - n_channels)

    def remove(self, blocks: Sequence[_Blocks]) -> None:
        """Remove blocks in the order of their price until the budget is met or none is left."""
        table = _Table(blocks)
        while (excess := self.excess()) > 0:
            prices = self._prices()
            left = table.left(self.removed, prices > 0)
            if not left.size:
                return
            keys = _keys(table.scores[left], prices[table.group[left]], self.power)
            order = left[np.argsort(keys, kind="stable")]
            # The plain order does not depend on what has gone: one round is enough.
            share = 1.0 if self.power == 0 and len(self.limits) == 1 else SHARE_PER_ROUND
            count = self._prefix(table, order, (1 - share) * excess)
            after = table.removed_after(order[:count], self.removed)
            for group in np.flatnonzero(after != self.removed).tolist():
                self.set_removed(group, int(after[group]))

    def _prices(self) -> FloatArray:
        """Saving of one more channel per group, in shares of what is still exceeded."""
        prices = np.zeros(len(self.parts))
        for name, limit in self.limits.items():
            state = self.states[name]
            if state.total > limit:
                prices += state.marginals / (state.total - limit)
        return prices

    def _prefix(self, table: _Table, order: IntArray, target: float) -> int:
        """Return the smallest number of blocks after which the excess is at most ``target``."""
        low, high = 0, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            if self.excess(table.removed_after(order[:middle], self.removed)) <= target:
                high = middle
            else:
                low = middle
        return high

    def put_back(self, blocks: Sequence[_Blocks]) -> None:
        """Put back blocks that the budget has room for, the highest score first."""
        waiting = [
            (-float(own.scores[i]), -group, i)
            for group, own in enumerate(blocks)
            if (i := int(np.searchsorted(own.ends, self.removed[group]))) < len(own.ends)
            and self.removed[group] > 0
        ]
        heapq.heapify(waiting)
        while waiting:
            _, negated, i = heapq.heappop(waiting)
            group, own = -negated, blocks[-negated]
            n_channels = int(own.ends[i - 1]) if i else 0
            # What does not fit now never will: putting back others only makes it dearer.
            if self._fits(group, n_channels):
                self.set_removed(group, n_channels)
                if i:
                    heapq.heappush(waiting, (-float(own.scores[i - 1]), -group, i - 1))

    def _fits(self, group: int, n_channels: int) -> bool:
        more = n_channels - int(self.removed[group])
        for name, limit in self.limits.items():
            # The change is a polynomial in the count, so a negative number of drops adds exactly.
            if self.states[name].total - self.states[name].saving(group, more) > limit:
                return False
        return True

    def fill(self, round_to: int) -> None:
        """Give up the multiple in as few groups as possible to come within ``MISS``."""
        while self.miss() > MISS:
            options = [
                option
                for group in np.flatnonzero(self.removed).tolist()
                if (option := self._best_fill(group, round_to)) is not None
            ]
            if not options:
                return
            _, group, n_channels = min(options)
            self.set_removed(group, n_channels)

    def _best_fill(self, group: int, round_to: int) -> tuple[float, int, int] | None:
        """Put back as much of one group as fits; return what it would miss by, and the count."""
        gone = int(self.removed[group])
        for n_channels in range(max(0, gone - round_to + 1), gone):
            if self._fits(group, n_channels):
                self.set_removed(group, n_channels)
                option = (self.miss(), group, n_channels)
                self.set_removed(group, gone)
                return option
        return None

    def lowest(self, name: str) -> int:
        """Return a cost with everything removed that may be."""
        most = np.array([len(part.order) for part in self.parts], dtype=np.int64)
        counts: IntArray = self.full - most
        return self.models[name].value(counts)


class _Table:
    """The blocks of all groups side by side, by group, then first to go first."""

    def __init__(self, blocks: Sequence[_Blocks]) -> None:
        sizes = [len(b.ends) for b in blocks]
        self.group: IntArray = np.repeat(np.arange(len(blocks), dtype=np.int64), sizes)
        empty_ints, empty = np.empty(0, dtype=np.int64), np.empty(0)
        self.ends: IntArray = np.concatenate([empty_ints, *(b.ends for b in blocks)])
        self.scores: FloatArray = np.concatenate([empty, *(b.scores for b in blocks)])

    def left(self, removed: IntArray, wanted: NDArray[np.bool_]) -> IntArray:
        """Return the blocks of the wanted groups that are not gone yet."""
        left: IntArray = np.flatnonzero((self.ends > removed[self.group]) & wanted[self.group])
        return left

    def removed_after(self, taken: IntArray, removed: IntArray) -> IntArray:
        """Return the channels gone per group once these blocks are gone as well."""
        after: IntArray = removed.copy()
        np.maximum.at(after, self.group[taken], self.ends[taken])
        return after


def _keys(scores: FloatArray, prices: FloatArray, power: float) -> FloatArray:
    """Order of removal. A negative score, a gain, gets the more urgent the more it saves."""
    if power == 0:
        return scores
    weights = prices**power
    keys: FloatArray = np.where(scores >= 0, scores / weights, scores * weights)
    return keys


def _infeasible(groups: CouplingGroups, search: _Search, safety: Safety) -> str:
    name = next(n for n, limit in search.limits.items() if search.lowest(n) > limit)
    original, limit, lowest = search.original[name], search.limits[name], search.lowest(name)
    held = sum(part.group.n_channels - len(part.order) for part in search.parts)
    return (
        f"At most {limit:,} {WORDS[name]} ({limit / max(1, original):.2%}) cannot be met: with "
        f"{safety} the smallest reachable model has {lowest:,} of {original:,}, which removes "
        f"{1 - lowest / max(1, original):.2%}. The limits hold {held} channels of "
        f"{len(groups)} groups. {_largest_frozen(groups)} Allow more in the budget or in `safety=`."
    )


def _largest_frozen(groups: CouplingGroups) -> str:
    """Say which frozen channels hold most parameters, leaving out dims that are not channels."""
    candidates = [g for g in groups.frozen if g.reasons and g.reasons[0].kind != "structure"]
    if not candidates:
        return "No group is frozen."
    largest = max(candidates, key=lambda group: _held_params(groups, group))
    reason = largest.reasons[0]
    where = f" ({reason.source})" if reason.source else ""
    return (
        f"Largest frozen group: `{largest.name}` ({largest.n_channels} channels, "
        f"{_held_params(groups, largest):,} parameters): {reason.detail}{where}."
    )


def _held_params(groups: CouplingGroups, frozen: FrozenGroup) -> int:
    held = 0
    for member in frozen.members:
        if member.name in groups.parameter_names:
            shape = groups.shapes[member.name]
            held += member.index.size * math.prod(shape) // max(1, shape[member.dim])
    return held
