"""What :func:`taskprune.prune` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from taskprune.cost import LatencyReport
from taskprune.coupling.groups import CouplingGroups
from taskprune.front.frontier_record import Frontier
from taskprune.importance.scores import ChannelScores
from taskprune.plan.plan import PruningPlan
from taskprune.report.html import report_page
from taskprune.report.pages import in_a_frame, save_page
from taskprune.report.record import PruneReport


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
        return str(self.report)

    def to_html(
        self,
        *,
        measured: Mapping[str, Mapping[str, float]] | None = None,
        frontier: Frontier | None = None,
        pictures: Mapping[str, str | Path] | None = None,
        latency: Mapping[str, LatencyReport] | None = None,
    ) -> str:
        """Return the report as one HTML page that needs no other file, no script and no network.

        It begins with what the run came to, shows what ``print(result)`` shows, and for each group
        whose importance goes and why. Of very large models it shows the groups that lose most;
        ``report.to_json()`` and ``plan.to_json()`` hold all.

        Args:
            measured: Metrics of what was made of the result since, to stand beside its own:
                ``{"distilled": {"lane": 0.77}}``.
            frontier: What each size would cost every task, if that was measured.
            pictures: PNG or JPEG files by caption, such as labels and predictions of both models:
                ``{"Labels, original, pruned": "predictions.png"}``. They become part of the page.
            latency: Times from :func:`taskprune.cost.measure_latency`, the original's first.

        Raises:
            InputError: `measured` or `pictures` are something else, or a picture cannot be read.
        """
        return report_page(
            self.report,
            self.plan,
            model=type(self.model).__name__,
            measured=measured,
            curves=frontier.curves() if frontier is not None else None,
            pictures=pictures,
            latency=latency,
        )

    def save_html(
        self,
        path: str | Path,
        *,
        measured: Mapping[str, Mapping[str, float]] | None = None,
        frontier: Frontier | None = None,
        pictures: Mapping[str, str | Path] | None = None,
        latency: Mapping[str, LatencyReport] | None = None,
    ) -> None:
        """Write :meth:`to_html` to a file, which appears under its name when it is complete.

        Args:
            path: The file to write, in an existing folder.
            measured: As there.
            frontier: As there.
            pictures: As there.
            latency: As there.

        Raises:
            InputError: The folder is missing, the file cannot be written, or an argument is
                something else.
        """
        page = self.to_html(
            measured=measured, frontier=frontier, pictures=pictures, latency=latency
        )
        save_page(page, Path(path))

    def _repr_html_(self) -> str:
        return in_a_frame(self.to_html())

    def __repr__(self) -> str:
        before, after = self.report.costs["params"]
        return f"PruneResult({type(self.model).__name__}: {before:,} -> {after:,} parameters)"
