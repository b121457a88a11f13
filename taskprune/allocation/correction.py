r"""What scores predict of whole groups, bent to what was measured.

Scores order the channels of a group well and say badly what many of them cost together. So the
order stays, and what the channels add one after the other, :math:`a_1 \le a_2 \le \dots`
(:func:`~taskprune.importance.accumulation.accumulated`), is multiplied by a factor for each stretch
between two measured widths: the damage that was measured there over what was predicted,

.. math:: f_i = \max\Bigl(f_{i-1}, \frac{1}{\kappa}
          \frac{D(n_i) - D(n_{i-1})}{\sum_{n_{i-1} < n \le n_i} a_n}\Bigr),

in units of :math:`\kappa`, the median of those ratios, so that corrected scores stay on the scale
of scores and stand beside those of groups that were not measured. Factors never fall within a
group: one that was hurt early is not taken to pieces because there is little left to hurt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from taskprune.coupling.groups import IntArray
from taskprune.importance.accumulation import accumulated
from taskprune.importance.scores import ChannelScores
from taskprune.solver.blocks import FloatArray

LEAST_DAMAGE = 1e-3
"""What taking out a whole group counts as at the least, as a share of what the tasks have to lose:
one batch cannot tell less from nothing, and channels that cost nothing go in the order of their
scores."""

UNIFORM = 1e-3
"""Part of a group's mean prediction that each of its channels counts as having at the least, since
no factor makes damage out of predictions of 0."""


@dataclass(frozen=True, slots=True)
class Level:
    """What a group costs at one width.

    Attributes:
        n_gone: How many of its channels are gone, lowest scores first.
        damage: What the tasks lose by that, not negative.
    """

    n_gone: int
    damage: float


def corrected(scores: ChannelScores, levels: Mapping[str, Sequence[Level]]) -> ChannelScores:
    """Return the scores with totals that add up to measured damage.

    Args:
        scores: What was predicted.
        levels: ``{group name: what was measured, ascending}``; others are left as predicted.
    """
    if not levels:
        return scores
    predicted = {name: _predicted(scores, name) for name in scores.groups}
    ratios = {name: _ratios(predicted[name][1], own) for name, own in levels.items()}
    scale = float(np.median(np.concatenate(list(ratios.values()))))
    groups = {}
    for name, own in scores.groups.items():
        order, added = predicted[name]
        if name in levels:
            factors = np.maximum.accumulate(ratios[name]) / scale
            # What lies beyond the last width costs what the last stretch does.
            ends = np.array([level.n_gone for level in levels[name][:-1]], dtype=np.int64)
            added = added * factors[np.searchsorted(ends, np.arange(len(added)), side="right")]
        total = torch.empty_like(own.total)
        total[torch.from_numpy(order)] = torch.from_numpy(added)
        groups[name] = replace(own, total=total)
    # What channels cost together is in the totals now.
    return replace(scores, groups=groups, correlation=0.0)


def in_order(scores: ChannelScores, group: str) -> IntArray:
    """Return a group's channels in the order in which they go. Shape ``[C]``, int64."""
    return np.argsort(scores[group].total.numpy(), kind="stable")


def _predicted(scores: ChannelScores, group: str) -> tuple[IntArray, FloatArray]:
    """Return the order of a group's channels, and what each adds; that is above 0."""
    order = in_order(scores, group)
    added = np.maximum(accumulated(scores[group].total.numpy()[order], scores.correlation), 0.0)
    return order, added + (UNIFORM * added.mean() if added.any() else _smallest(scores))


def _smallest(scores: ChannelScores) -> float:
    """Return the smallest score above 0: what channels that all have 0 are given."""
    totals = torch.cat([own.total for own in scores.groups.values()])
    return float(totals[totals > 0].min()) if bool((totals > 0).any()) else 1.0


def _ratios(added: FloatArray, levels: Sequence[Level]) -> FloatArray:
    """Return measured over predicted of each stretch. Shape ``[n_levels]``."""
    gone = np.array([0, *(level.n_gone for level in levels)])
    damage = np.maximum.accumulate([0.0, *(level.damage for level in levels)])
    least = LEAST_DAMAGE * np.diff(gone) / len(added)
    predicted = np.diff(np.concatenate([[0.0], np.cumsum(added)])[gone])
    ratios: FloatArray = np.maximum(np.diff(damage), least) / predicted
    return ratios
