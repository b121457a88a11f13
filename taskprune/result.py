"""What :func:`taskprune.prune` returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.scores import ChannelScores
from taskprune.plan import PruningPlan
from taskprune.report import PruneReport, render


@dataclass(frozen=True, eq=False, repr=False)
class PruneResult:
    """What :func:`prune` returns. ``print(result)`` shows the report.

    Attributes:
        model: The smaller model: same class, same interface, its own tensors.
        plan: The decision as data; with the weights it is the checkpoint.
        report: Figures per task, per group and per reason, also as JSON.
        groups: The coupling groups, prunable and frozen.
        scores: Every channel's score, per task and in total.
    """

    model: nn.Module
    plan: PruningPlan
    report: PruneReport
    groups: CouplingGroups
    scores: ChannelScores

    def __str__(self) -> str:
        return render(self.report)

    def __repr__(self) -> str:
        before, after = self.report.costs["params"]
        return f"PruneResult({type(self.model).__name__}: {before:,} -> {after:,} parameters)"
