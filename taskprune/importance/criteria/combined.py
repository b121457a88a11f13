"""Several criteria in one: what tasks would lose, and what another sensor says as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError
from taskprune.importance.criteria.altermoma import AlterMomaImportance
from taskprune.importance.criteria.task_taylor import TaskTaylorImportance
from taskprune.importance.scores import BLIND, ChannelScores, Evidence, Importance

PerGroup: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class CombinedImportance:
    r"""The weighted sum of several criteria's scores, each on the scale of its own mean.

    .. math:: S_c = \sum_i w_i \frac{S_{i,c}}{\frac{1}{C} \sum_{c'} |S_{i,c'}|}

    For a camera-LiDAR network with several tasks, say, ``TaskTaylorImportance()`` knows what each
    task would lose and where tasks fight, and ``AlterMomaImportance()`` what one sensor says as
    well as the other: :func:`task_modality`. The combination is ours.

    Calibration cannot stop early, and all calibration batches are held in memory, as every
    criterion goes through them.

    Attributes:
        criteria: Any that return whole records, at least two.
        weights: One positive number for each. Default: 1 each.
    """

    criteria: tuple[Importance, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.criteria) < 2 or not all(callable(criterion) for criterion in self.criteria):
            raise InputError(
                f"`criteria` must be at least two importance criteria. Found {self.criteria!r}."
            )
        if self.weights and (
            len(self.weights) != len(self.criteria) or not all(w > 0 for w in self.weights)
        ):
            raise InputError(
                "`weights` must be a positive number for each criterion. Found "
                f"{self.weights!r} for {len(self.criteria)} criteria."
            )

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel, for every task if a criterion tells them apart.

        Raises:
            InputError: A criterion does not return a whole record.
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        once = replace(evidence, batches=tuple(evidence.batches), settled=None)
        found = [self._scores(criterion, model, groups, once) for criterion in self.criteria]
        weights = self.weights or (1.0,) * len(found)
        factors = [w / _scale(own.total) for w, own in zip(weights, found, strict=True)]
        tasks = next((own.tasks for own in found if own.tasks != BLIND), BLIND)
        if any(own.tasks not in (tasks, BLIND) for own in found):
            raise InputError(
                f"Expected scores of the same tasks from all criteria. Found "
                f"{[own.tasks for own in found]}."
            )

        def total(of: Callable[[ChannelScores], PerGroup]) -> dict[str, Tensor]:
            parts = [(x, of(own)) for x, own in zip(factors, found, strict=True) if of(own)]
            names = parts[0][1] if parts else ()
            return {n: torch.stack([x * part[n] for x, part in parts]).sum(0) for n in names}

        return ChannelScores(
            criterion=" + ".join(own.criterion for own in found),
            tasks=tasks,
            per_task=total(lambda own: _rows(own, len(tasks))),
            total=total(lambda own: own.total),
            conflict=total(lambda own: own.conflict),
            pair_conflict=total(lambda own: own.pair_conflict),
            n_batches=max(own.n_batches for own in found),
            # A prediction in units of its own: nothing to weigh, and one is enough.
            loss_increase=next((own.loss_increase for own in found if own.loss_increase), {}),
        )

    def _scores(
        self, criterion: Importance, model: nn.Module, groups: CouplingGroups, evidence: Evidence
    ) -> ChannelScores:
        scores = criterion(model, groups, evidence)
        if not isinstance(scores, ChannelScores):
            raise InputError(
                "CombinedImportance needs criteria that return `ChannelScores`. Found "
                f"{type(scores).__name__} from {criterion!r}."
            )
        return scores


def _rows(scores: ChannelScores, n_tasks: int) -> PerGroup:
    """Return the scores per task, the same for each where the criterion knows none."""
    return {name: own.expand(n_tasks, -1) for name, own in scores.per_task.items()}


def _scale(total: PerGroup) -> float:
    size = torch.cat([own.abs() for own in total.values()]) if total else torch.zeros(1)
    return float(size.mean()) or 1.0


def task_modality() -> CombinedImportance:
    """Return the default criterion with AlterMOMA, for several sensors and tasks in one plan.

    AlterMOMA counts twice. What both sensors carry often matters most to the tasks, so with equal
    weights its large effect hides, on more of our planted nets, that one of the two would do.
    """
    return CombinedImportance((TaskTaylorImportance(), AlterMomaImportance()), (1.0, 2.0))
