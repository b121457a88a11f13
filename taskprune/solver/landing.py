"""Reaching the bounds exactly: remove what still exceeds them, put back what they have room for.

Channels of all groups are merged into one order by ``score / saving ** power`` and taken off its
low end. Savings depend on what has gone already, so the order is made anew each time a quarter of
the remaining excess is gone, at the end after every channel. What the last step removed too much
is put back, most important first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from taskprune.coupling.groups import IntArray
from taskprune.solver.account import Account
from taskprune.solver.blocks import Blocks, FloatArray, Table, order_keys

SHARE_PER_ROUND = 0.25
"""Share of the remaining excess that goes before savings and prices are looked at again."""

FIRST_SORTED = 2048
"""How many of the cheapest blocks are put in order at first."""

MISS = 0.005
"""By which fraction of the original cost a plan may undershoot for the sake of ``round_to``."""


def remove(account: Account, blocks: Sequence[Blocks]) -> None:
    """Remove blocks in the order of their price until the budget is met or none is left."""
    table = Table(blocks)
    while (excess := account.excess()) > 0:
        prices = account.prices()
        left = table.left(account.removed, prices > 0)
        if not left.size:
            return
        keys = order_keys(table.scores[left], prices[table.group[left]], account.power)
        # The plain order does not depend on what has gone: one round is enough.
        share = 1.0 if account.power == 0 and len(account.limits) == 1 else SHARE_PER_ROUND
        target = (1 - share) * excess
        for order in _low_ends(left, keys):
            if account.excess(table.removed_after(order, account.removed)) <= target:
                break
        count = _prefix(account, table, order, target)
        account.move_to(table.removed_after(order[:count], account.removed))


def step_together(account: Account, blocks: Sequence[Blocks]) -> bool:
    """Take channels of several groups at once where those of one alone save nothing.

    A kernel that is fast only when both of its widths are small gives no channel a price. As few
    as lower the excess go, lowest scores first; returns whether any did.
    """
    table, before = Table(blocks), account.excess()
    left = table.left(account.removed, np.ones(len(blocks), dtype=np.bool_))
    order = left[np.argsort(table.scores[left], kind="stable")]
    if not account.excess(table.removed_after(order, account.removed)) < before:
        return False
    count = _prefix(account, table, order, float(np.nextafter(before, 0)))
    account.move_to(table.removed_after(order[:count], account.removed))
    return True


def _low_ends(left: IntArray, keys: FloatArray) -> Iterator[IntArray]:
    """Yield ever longer starts of the blocks in stable order of their keys, the whole one last.

    A round removes a part of them, the last rounds a few: sorting all would take most of the time.
    """
    count = FIRST_SORTED
    while count < len(keys):
        chosen = np.flatnonzero(keys <= np.partition(keys, count)[count])
        yield left[chosen[np.argsort(keys[chosen], kind="stable")]]
        count *= 8
    yield left[np.argsort(keys, kind="stable")]


def _prefix(account: Account, table: Table, order: IntArray, target: float) -> int:
    """Return the smallest number of blocks after which the excess is at most ``target``."""
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        if account.excess(table.removed_after(order[:middle], account.removed)) <= target:
            high = middle
        else:
            low = middle
    return high


def put_back(account: Account, blocks: Sequence[Blocks]) -> None:
    """Put back blocks that the budget has room for, the highest score first."""
    waiting = [
        (-float(own.scores[i]), -group, i)
        for group, own in enumerate(blocks)
        if (i := int(np.searchsorted(own.ends, account.removed[group]))) < len(own.ends)
        and account.removed[group] > 0
    ]
    heapq.heapify(waiting)
    while waiting:
        _, negated, i = heapq.heappop(waiting)
        group, own = -negated, blocks[-negated]
        fewer = account.with_removed(group, int(own.ends[i - 1]) if i else 0)
        # What does not fit now never will: putting back others only makes it dearer.
        if account.fits(fewer):
            account.move_to(fewer)
            if i:
                heapq.heappush(waiting, (-float(own.scores[i - 1]), -group, i - 1))


def fill(account: Account, round_to: int) -> None:
    """Give up the multiple in as few groups as possible to come within ``MISS``."""
    while account.miss() > MISS:
        options = [
            option
            for group in np.flatnonzero(account.removed).tolist()
            if (option := _best_fill(account, group, round_to)) is not None
        ]
        if not options:
            return
        _, group, n_channels = min(options)
        account.move_to(account.with_removed(group, n_channels))


def _best_fill(account: Account, group: int, round_to: int) -> tuple[float, int, int] | None:
    """Put back as much of one group as fits; return what it would miss by, and the count."""
    gone = int(account.removed[group])
    step = account.parts[group].group.step
    for n_channels in range(max(0, gone - round_to + 1), gone):
        fewer = account.with_removed(group, n_channels)
        if n_channels % step == 0 and account.fits(fewer):
            return account.miss(fewer), group, n_channels
    return None


MOST_TRIED = 8
"""Groups that are tried for each step taken back, those with the coarsest steps first."""


def exchange(account: Account, blocks: Sequence[Blocks]) -> None:
    """Trade coarse steps for finer ones until the target is met within ``MISS``, or none helps.

    The order of scores does not look at how much a channel saves, so the last one to go may
    overshoot the target by far (one that holds a third of the model, say), and what does not fit
    cannot be put back. Others go in its place. The bounds hold before and after.
    """
    allowed = list(blocks)
    while account.miss() > MISS:
        for group in _coarsest(account, allowed):
            traded = list(allowed)
            traded[group] = _without_last(allowed[group], int(account.removed[group]))
            if _trade(account, traded, group):
                allowed = traded
                break
        else:
            return


def _coarsest(account: Account, blocks: Sequence[Blocks]) -> list[int]:
    """Return the groups whose last step could be what overshoots, the coarsest step first."""
    found: list[tuple[float, int]] = []
    for group in np.flatnonzero(account.removed).tolist():
        back = _before_last(blocks[group], int(account.removed[group]))
        without = account.with_removed(group, back)
        size = max(
            (account.cost(name, without) - account.cost(name)) / max(1, account.original[name])
            for name in account.limits
        )
        if size > MISS:
            found.append((-size, group))
    return [group for _, group in sorted(found)[:MOST_TRIED]]


def _trade(account: Account, blocks: Sequence[Blocks], group: int) -> bool:
    """Give back a group's last step and land again; undo it if that is no nearer to the target."""
    before, miss = account.removed, account.miss()
    most = int(blocks[group].ends[-1]) if len(blocks[group].ends) else 0
    account.move_to(account.with_removed(group, most))
    remove(account, blocks)
    if account.excess() == 0:
        put_back(account, blocks)
        if account.miss() < miss:
            return True
    account.move_to(before)
    return False


def _before_last(blocks: Blocks, removed: int) -> int:
    earlier = blocks.ends[blocks.ends < removed]
    return int(earlier[-1]) if earlier.size else 0


def _without_last(blocks: Blocks, removed: int) -> Blocks:
    """Return the steps before the one that was taken last."""
    n = int(np.searchsorted(blocks.ends, removed))
    return Blocks(blocks.ends[:n], blocks.scores[:n])
