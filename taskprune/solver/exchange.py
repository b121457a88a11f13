"""Taking back a step that is too coarse: a channel that holds a third of the model, say.

The order of scores does not look at how much a channel saves, so the last one to go may overshoot
the target by far, and what does not fit cannot be put back. Others go in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taskprune.solver.account import Account
from taskprune.solver.blocks import Blocks
from taskprune.solver.landing import MISS, put_back, remove

MOST_TRIED = 8
"""Groups that are tried for each step taken back, those with the coarsest steps first."""


def exchange(account: Account, blocks: Sequence[Blocks]) -> None:
    """Trade coarse steps for finer ones until the target is met within ``MISS``, or none helps.

    The bounds hold before and after.
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
