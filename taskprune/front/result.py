"""What :func:`taskprune.prune` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.scores import ChannelScores
from taskprune.plan.plan import PruningPlan
from taskprune.report.html import report_page, save_page
from taskprune.report.record import PruneReport, render


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

    def to_html(self) -> str:
        """Return the report as one HTML page that needs no other file, no script and no network.

        It shows what ``print(result)`` shows, and for each group whose importance goes and why.
        Of very large models it shows the groups that lose most; ``report.to_json()`` and
        ``plan.to_json()`` hold all.
        """
        return report_page(self.report, self.plan, model=type(self.model).__name__)

    def save_html(self, path: str | Path) -> None:
        """Write :meth:`to_html` to a file, which appears under its name when it is complete.

        Args:
            path: The file to write, in an existing folder.

        Raises:
            InputError: The folder is missing, or the file cannot be written.
        """
        save_page(self.to_html(), Path(path))

    def __repr__(self) -> str:
        before, after = self.report.costs["params"]
        return f"PruneResult({type(self.model).__name__}: {before:,} -> {after:,} parameters)"
