"""What a pruning run did, as a record: for print, for JSON, for a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from taskprune.calling.tolerances import BrokenTolerance
from taskprune.compensation import LossReport, ReaderReport
from taskprune.cost.names import amount, cost_label
from taskprune.deployment.latency import LatencyComparison
from taskprune.files import as_record, parse_json
from taskprune.importance.conflict_report import (
    ConflictReport,
    conflict_table,
)
from taskprune.plan.rationale import FrozenDecision
from taskprune.replace import ModuleReplacement
from taskprune.report.balance import TriedWeights, balance_table
from taskprune.report.by_modality import ModalityLine, modality_table
from taskprune.report.cost_free import FreeReport
from taskprune.rewrite import VerificationReport
from taskprune.solver.removable import BoundLimit
from taskprune.terminal import plain_text, text_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

REASONS = {
    "interface": "inputs and outputs of the model",
    "literal": "sizes written as numbers in the code",
    "attribute": "sizes the code computes in a way that cannot follow",
    "structure": "dims that are not channels, or not of their own",
    "unknown": "operators without a rule",
    "user": "protected on request",
}
"""What each :data:`~taskprune.coupling.groups.FreezeKind` means to a reader."""


FROZEN_ROWS = 40
"""How many frozen groups are printed one by one; the record holds all."""


@dataclass(frozen=True, slots=True)
class TaskLine:
    """How much of what one task can reach goes.

    Attributes:
        task: Its name, or ``"all"`` where the criterion knows no tasks.
        private_groups: Groups that only this task can reach.
        shared_groups: Groups that it shares with others.
        channels: Prunable channels in both.
        dropped: How many of them go.
        importance_removed: Share of the task's total score that goes with them, 0 to 1.
    """

    task: str
    private_groups: int
    shared_groups: int
    channels: int
    dropped: int
    importance_removed: float


@dataclass(frozen=True, slots=True)
class GroupLine:
    """One prunable group and what it loses."""

    name: str
    n_channels: int
    n_kept: int
    tasks: tuple[str, ...]
    conflict: float
    modality: str = ""


@dataclass(frozen=True, slots=True)
class StepLine:
    """One step of a run in several, or one that was watched.

    Attributes:
        step: Its number, from 1.
        costs: What the model cost after it; MACs are of one sample.
        metrics: What was measured after it on the validation data, by task.
        undone: Whether it broke a tolerance and was undone.
    """

    step: int
    costs: Mapping[str, int]
    metrics: Mapping[str, float]
    undone: bool


@dataclass(frozen=True, slots=True)
class CompensationReport:
    """What re-weighting the readers of removed channels was worth in the last step.

    Attributes:
        losses: ``{task: its loss}`` on the calibration data; without labels the squared distance
            of an output from the original's, in units of its variance.
        readers: A record per parameter that reads removed channels.
    """

    losses: Mapping[str, LossReport]
    readers: tuple[ReaderReport, ...]

    def __str__(self) -> str:
        kept = sum(not reader.undone for reader in self.readers)
        undone = len(self.readers) - kept
        return f"{kept} readers of removed channels were re-weighted, {undone} left as sliced"


@dataclass(frozen=True, slots=True)
class CostLine:
    """A cost before and after, as text, and which fraction of it is left."""

    name: str
    before: str
    after: str
    left: float


@dataclass(frozen=True)
class PruneReport:
    """All figures of a run.

    Attributes:
        budget: What was asked for, in words.
        criterion: Name of the importance criterion.
        calibration_batches: How many batches the scores come from.
        costs: ``{cost: (before, after)}``: ``params``, ``macs`` of one sample, and of the whole
            batch ``latency_ns`` and ``activation_memory`` where the budget bounds them.
        tasks: A line per task.
        groups: A line per prunable group.
        frozen: A line per frozen group.
        untraced: Parameters that the traced forwards never touched.
        verification: Comparison with the masked original; ``None`` if there was none.
        replacements: Modules that were replaced by equal ones.
        limits: Safety limits that held a group back.
        notes: What else a reader must know: wrappers taken off, passes that did not run.
        conflict: Where tasks fight; ``None`` where the criterion has no conflict term.
        metrics: What was measured on the original, by task; empty without validation data.
        steps: A line per step; empty for a single one that nobody watched.
        tolerances: How much of its metric a task may lose, for tasks that say so and were watched.
        broken: Tasks that lost more than their tolerance in the last step, which was undone.
        latency: Predicted and measured, where the budget bounds it.
        modalities: A line per modality and one for the fusion; empty where none were declared.
        compensation: What re-weighting was worth; ``None`` where nothing was re-weighted.
        free: What costs nothing; ``None`` where nobody looked, which takes data and compensation.
        balance: Weights of tasks that were tried so that none pays for another; empty where they
            were not weighed by what they lose.
    """

    budget: str
    criterion: str
    calibration_batches: int
    costs: Mapping[str, tuple[int, int]]
    tasks: tuple[TaskLine, ...]
    groups: tuple[GroupLine, ...]
    frozen: tuple[FrozenDecision, ...]
    untraced: tuple[str, ...]
    verification: VerificationReport | None
    replacements: tuple[ModuleReplacement, ...] = ()
    limits: tuple[BoundLimit, ...] = ()
    notes: tuple[str, ...] = ()
    conflict: ConflictReport | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tolerances: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[StepLine, ...] = ()
    broken: tuple[BrokenTolerance, ...] = ()
    latency: LatencyComparison | None = None
    modalities: tuple[ModalityLine, ...] = ()
    compensation: CompensationReport | None = None
    free: FreeReport | None = None
    balance: tuple[TriedWeights, ...] = ()

    def to_json(self) -> str:
        """Return the report as indented JSON."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> PruneReport:
        """Read a report from :meth:`to_json`.

        Raises:
            InputError: The text is no report of this version.
        """
        return as_record(cls, parse_json(text), "the report of a pruning run")

    def removed(self, cost: str) -> float:
        """Return the fraction of a cost that was removed."""
        before, after = self.costs[cost]
        return 1 - after / before if before else 0.0

    def __str__(self) -> str:
        return plain_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield cost_table(self)
        if self.free is not None and self.free.channels:
            yield f"{self.free}."
        yield task_table(self)
        if self.modalities:
            yield modality_table(self.modalities)
        if self.compensation is not None:
            yield compensation_table(self.compensation)
        if len(self.balance) > 1:
            yield balance_table(self.balance)
        if self.steps:
            yield step_table(self)
        yield from (f"Stopped at step {broken.step}: {broken}." for broken in self.broken)
        yield frozen_table(self)
        if self.frozen:
            yield frozen_group_table(self)
        if self.replacements:
            yield replacement_table(self)
        if self.limits:
            yield limit_table(self)
        yield from (f"Note: {note}" for note in self.notes)
        if self.conflict is not None:
            yield conflict_table(self.conflict)
        if self.verification is not None:
            yield f"Verified: {self.verification}"


def cost_lines(report: PruneReport) -> list[CostLine]:
    """Return each cost before and after, also the latency where it was measured."""
    lines = [
        CostLine(cost_name(cost), cost_text(cost, a), cost_text(cost, b), _left(a, b))
        for cost, (a, b) in report.costs.items()
    ]
    if report.latency is not None:
        whole, less = report.latency.measured_ms
        left = _left(whole, less)
        lines.append(CostLine("latency, measured", f"{whole:.3g} ms", f"{less:.3g} ms", left))
    return lines


def cost_name(cost: str) -> str:
    """Return what the report calls a cost."""
    names = {"macs": "multiply-adds a sample", "latency_ns": "latency, predicted"}
    return names.get(cost, cost_label(cost))


def cost_text(cost: str, value: int) -> str:
    """Write an amount of a cost beside its name."""
    return amount(cost, value) if cost == "latency_ns" else f"{value:,}"


def _left(before: float, after: float) -> float:
    return after / before if before else 1.0


def cost_table(report: PruneReport) -> Table:
    """Parameters and multiply-adds before and after."""
    return text_table(
        f"Pruned to {report.budget} by {report.criterion}",
        ("", "before", "after", "removed"),
        (
            (line.name, line.before, line.after, f"{1 - line.left:.2%}")
            for line in cost_lines(report)
        ),
    )


def task_table(report: PruneReport) -> Table:
    """What each task can reach, and what of it goes."""
    rows = []
    for line in report.tasks:
        counts = (line.private_groups, line.shared_groups)
        # Criteria that know no tasks have neither kind.
        kinds = (str(n) if any(counts) else "-" for n in counts)
        lost = f"{line.importance_removed:.2%}"
        rows.append((line.task, *kinds, str(line.channels), str(line.dropped), lost))
    headings = ("task", "private groups", "shared groups", "channels", "dropped", "score lost")
    return text_table("Channels by task", headings, rows)


def compensation_table(report: CompensationReport) -> Table:
    """Each task's loss on the calibration data: the original's, as sliced, and re-weighted."""
    rows = (
        (task, *(f"{value:.4g}" for value in (loss.original, loss.sliced, loss.compensated)))
        for task, loss in report.losses.items()
    )
    headings = ("task", "loss of the original", "as sliced", "re-weighted")
    return text_table("Compensated", headings, rows, caption=f"{report}.")


def step_table(report: PruneReport) -> Table:
    """What was left after each step, and how well each task did."""
    costs = tuple(report.costs)
    original = StepLine(0, {name: report.costs[name][0] for name in costs}, report.metrics, False)
    rows = (
        (
            str(line.step),
            *(f"{line.costs[name]:,}" for name in costs),
            *(f"{line.metrics[name]:.4g}" for name in report.metrics),
            "undone" if line.undone else "",
        )
        for line in (original, *report.steps)
    )
    return text_table("Steps", ("step", *costs, *report.metrics, ""), rows, words=("",))


def frozen_by_kind(report: PruneReport) -> dict[str, list[FrozenDecision]]:
    """Return the frozen groups by what froze them, in the order of :data:`REASONS`."""
    by_kind: dict[str, list[FrozenDecision]] = {kind: [] for kind in REASONS}
    for group in report.frozen:
        by_kind.setdefault(group.kind, []).append(group)
    return {kind: groups for kind, groups in by_kind.items() if groups}


def frozen_table(report: PruneReport) -> RenderableType:
    """What had to stay, by reason."""
    if not report.frozen and not report.untraced:
        return "Nothing is frozen."
    rows = []
    for kind, groups in frozen_by_kind(report).items():
        channels = sum(group.n_channels for group in groups)
        where = f" ({groups[0].source})" if groups[0].source else ""
        example = f"{groups[0].name}{where}"
        rows.append((REASONS.get(kind, kind), str(len(groups)), str(channels), example))
    if report.untraced:
        rows.append(("never reached", str(len(report.untraced)), "", report.untraced[0]))
    headings = ("reason", "groups", "channels", "for example")
    return text_table("Frozen, and why", headings, rows, words=("reason", "for example"))


def frozen_group_table(report: PruneReport) -> RenderableType:
    """Each frozen group: the operator that froze it, the module it ran in and the source line.

    Groups that the code freezes come before those that are inputs and outputs of the model, and
    `FROZEN_ROWS` are shown.
    """
    groups = sorted(report.frozen, key=lambda group: group.kind == "interface")
    more = len(groups) - FROZEN_ROWS
    return text_table(
        "Frozen groups",
        ("group", "channels", "why", "operator", "module", "source"),
        (
            (own.name, str(own.n_channels), own.detail, own.operator, own.module, own.source)
            for own in groups[:FROZEN_ROWS]
        ),
        words=("group", "why", "operator", "module", "source"),
        caption=f"{more} more in `report.frozen`" if more > 0 else None,
    )


def replacement_table(report: PruneReport) -> Table:
    """Modules that could not shrink as they were written, and what took their place."""
    rows = ((replacement.path, replacement.kind) for replacement in report.replacements)
    headings = ("module", "by")
    return text_table("Replaced by equal modules", headings, rows, words=headings)


def limit_table(report: PruneReport) -> Table:
    """Groups that would have lost more but for a field of `Safety`."""
    by_limit: dict[str, list[BoundLimit]] = {}
    for bound in report.limits:
        by_limit.setdefault(bound.limit, []).append(bound)
    return text_table(
        "Held back by safety limits",
        ("limit", "groups", "for example", "kept"),
        (
            (limit, str(len(bounds)), bounds[0].group, str(bounds[0].n_kept))
            for limit, bounds in by_limit.items()
        ),
        words=("limit", "for example"),
    )
