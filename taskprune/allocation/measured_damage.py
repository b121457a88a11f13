"""A criterion around another: scores are corrected by what whole groups cost the tasks. Ours.

First-order scores are taken one channel at a time. What several channels of one group do together
can be ten times what they predict: a narrow layer in front of an output, say, and in another group
nearly nothing. A few forwards a group show it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from taskprune.allocation.silencing import Moments, silenced
from taskprune.calling.inputs import Remembered, TaskBatch
from taskprune.compensation.harm import Harm, runs
from taskprune.coupling.groups import CouplingGroups, IntArray
from taskprune.errors import InputError, short
from taskprune.importance.accumulation import accumulated
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.criteria_by_name import DEFAULT_CRITERION, checked_criterion
from taskprune.importance.normalisation import LEAST_STAKE
from taskprune.importance.projections import Projection, output_tasks
from taskprune.importance.scores import ChannelScores, Evidence, Importance
from taskprune.importance.scoring import scores_from_mapping
from taskprune.importance.stakes import Stakes
from taskprune.restore.modes import evaluating
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
    r"""Return the scores with totals that add up to measured damage.

    Scores order the channels of a group well and say badly what many of them cost together. So the
    order stays, and what the channels add one after the other, :math:`a_1 \le a_2 \le \dots`
    (:func:`~taskprune.importance.accumulation.accumulated`), is multiplied by a factor for each
    stretch between two measured widths: the damage measured there over what was predicted,

    .. math:: f_i = \max\Bigl(f_{i-1}, \frac{1}{\kappa}
              \frac{D(n_i) - D(n_{i-1})}{\sum_{n_{i-1} < n \le n_i} a_n}\Bigr),

    in units of :math:`\kappa`, the median of those ratios, so that corrected scores stay on the
    scale of scores and stand beside those of groups that were not measured. Factors never fall
    within a group: one that was hurt early is not taken to pieces because there is little left to
    hurt.

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
    return replace(scores, groups=groups, correlation=0.0, reweighted=None)


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


_log = logging.getLogger("taskprune")


@dataclass(frozen=True)
class MeasuredDamage:
    r"""Correct the scores of another criterion by what the tasks lose without parts of groups.

    On the first batches the lowest scores of a group are taken out, what reads them is mended by
    least squares, and what each task's loss rises by is measured as a share of what the task has to
    lose (:class:`~taskprune.importance.stakes.Stakes`). The damage is the sum over tasks of
    weighted rises; a loss that falls counts as one that stays. Outputs without labels are measured
    by their squared distance from what they were, in units of their variance. The totals of the
    result add up to measured damage (:func:`corrected`); all else of the
    scores stays. There is no clock: the same arguments give the same scores.

    Costs a forward a group, width and batch.

    Attributes:
        importance: The criterion that orders channels, or its name.
        widths: Fractions of a group's channels that are taken out, ascending.
        n_batches: How many batches to measure on.
        mended: Measure after a least-squares map of the readers, as where the smaller network will
            be compensated.
    """

    importance: str | Importance = DEFAULT_CRITERION
    widths: tuple[float, ...] = (0.2, 0.5)
    n_batches: int = 1
    mended: bool = True

    def __post_init__(self) -> None:
        ascending = list(self.widths) == sorted(set(self.widths))
        if not (self.widths and ascending and self.widths[0] > 0 and self.widths[-1] <= 1):
            raise InputError(
                "`widths` must be ascending fractions of a group's channels, above 0 and at most "
                f"1. Found {short(self.widths)}."
            )
        if self.n_batches < 1:
            raise InputError(f"`n_batches` must be at least 1. Found {short(self.n_batches)}.")

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel of every group.

        Raises:
            InputError: There is no batch.
            TraceError, LossError: See :func:`taskprune.score`.
        """
        criterion = checked_criterion(self.importance)
        # Tasks that have loaders of their own take turns: there is one batch of each.
        batches = Remembered(evidence.batches, self.n_batches * max(1, len(evidence.tasks)))
        found = criterion(model, groups, replace(evidence, batches=batches))
        name = getattr(criterion, "__name__", type(criterion).__name__)
        if isinstance(found, Mapping):
            found = scores_from_mapping(found, groups, name, tuple(evidence.tasks))
        kept = batches.kept()
        if not any(isinstance(batch, TaskBatch) for batch in kept):
            kept = kept[: self.n_batches]
        if not kept:
            raise InputError("Damage is measured on calibration batches. Found none: pass `data=`.")
        if not len(groups):
            return found
        tasks = evidence.tasks or output_tasks(model, kept[0], forward=evidence.forward)
        known = replace(evidence, tasks=tasks, batches=kept)
        with torch.no_grad(), evaluating(model):
            levels = self._levels(model, groups, found, known)
        return replace(corrected(found, levels), criterion=f"measured {found.criterion}")

    def _levels(
        self, model: nn.Module, groups: CouplingGroups, scores: ChannelScores, evidence: Evidence
    ) -> dict[str, list[Level]]:
        measure = _Measure(model, groups, evidence)
        moments = Moments() if self.mended else None
        base = measure.base(moments)
        parameters = dict(model.named_parameters())
        levels: dict[str, list[Level]] = {}
        for group in groups:
            for n_gone in sorted({int(width * group.n_channels) for width in self.widths} - {0}):
                gone = in_order(scores, group.name)[:n_gone]
                with silenced(parameters, group, gone, moments):
                    damage = measure.damage(base)
                if math.isfinite(damage):
                    levels.setdefault(group.name, []).append(Level(n_gone, damage))
                else:
                    _log.warning(
                        "Without %d channels of `%s` a loss is not finite", n_gone, group.name
                    )
        return levels


class _Measure:
    """What the tasks lose."""

    def __init__(self, model: nn.Module, groups: CouplingGroups, evidence: Evidence) -> None:
        self.model, self.groups, self.evidence = model, groups, evidence
        self.tasks = evidence.tasks
        self.labelled = {n: t for n, t in self.tasks.items() if not isinstance(t.loss, Projection)}
        self.scales: dict[str, float] = {}

    def base(self, moments: Moments | None) -> Mapping[str, float]:
        """Measure the model as it is; takes moments on the way."""
        self.harm = Harm(self.tasks, (outputs for outputs, _ in self._runs()))
        with nullcontext() if moments is None else moments.taken(self.model, self.groups):
            losses = self.harm.of(self._runs())
        index = ChannelIndex(self.groups)
        parameters = index.find(dict(self.model.named_parameters()))
        stakes = Stakes(self.model, index, replace(self.evidence, tasks=self.labelled), parameters)
        for batch in self.evidence.batches:
            stakes.add(batch, {row: losses[name] for row, name in enumerate(self.labelled)})
        for name, stake in zip(self.labelled, stakes.values().tolist(), strict=True):
            known = max(stake, LEAST_STAKE * losses[name]) if stake == stake else losses[name]
            self.scales[name] = known or 1.0
        return losses

    def damage(self, base: Mapping[str, float]) -> float:
        """Return what is lost with the model as it stands, not negative."""
        found = self.harm.of(self._runs())
        weights = {name: task.weight for name, task in self.tasks.items()}
        rises = [
            weights.get(name, 1.0) * max(0.0, (value - base[name]) / self.scales.get(name, 1.0))
            if math.isfinite(value)
            else math.nan
            for name, value in found.items()
        ]
        return sum(rises)

    def _runs(self) -> Iterator[tuple[Any, Any]]:
        return runs(self.model, list(self.evidence.batches), self.evidence.forward)
