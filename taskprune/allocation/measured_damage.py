"""A criterion around another: scores are corrected by what whole groups cost the tasks. Ours.

First-order scores are taken one channel at a time. What several channels of one group do together
can be ten times what they predict: a narrow layer in front of an output, say, and in another group
nearly nothing. A few forwards a group show it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from taskprune.allocation.correction import Level, corrected, in_order
from taskprune.allocation.silencing import Moments, silenced
from taskprune.calling.inputs import Remembered, TaskBatch
from taskprune.compensation.harm import Harm, runs
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError, short
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.criteria_by_name import DEFAULT_CRITERION, checked_criterion
from taskprune.importance.normalisation import LEAST_STAKE
from taskprune.importance.projections import Projection, output_tasks
from taskprune.importance.scores import ChannelScores, Evidence, Importance
from taskprune.importance.scoring import scores_from_mapping
from taskprune.importance.stakes import Stakes
from taskprune.restore.modes import evaluating

_log = logging.getLogger("taskprune")


@dataclass(frozen=True)
class MeasuredDamage:
    r"""Correct the scores of another criterion by what the tasks lose without parts of groups.

    On the first batches the lowest scores of a group are taken out, what reads them is mended by
    least squares, and what each task's loss rises by is measured as a share of what the task has to
    lose (:class:`~taskprune.importance.stakes.Stakes`). The damage is the sum over tasks of
    weighted rises; a loss that falls counts as one that stays. Outputs without labels are measured
    by their squared distance from what they were, in units of their variance. The totals of the
    result add up to measured damage (:mod:`taskprune.allocation.correction`); all else of the
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
