"""Gather the figures of a pruning run for its report."""

from __future__ import annotations

import logging

from torch import nn

from taskprune.cost.names import kind_of
from taskprune.coupling.groups import CouplingGroups
from taskprune.deployment.latency import LatencyComparison
from taskprune.graph import ModelGraph
from taskprune.importance.conflict_report import conflict_report
from taskprune.importance.scores import BLIND, ChannelScores
from taskprune.plan.plan import PruningPlan
from taskprune.plan.rationale import FrozenDecision
from taskprune.replace import PLAIN
from taskprune.report.by_modality import modality_lines
from taskprune.report.record import GroupLine, PruneReport, TaskLine
from taskprune.rewrite import VerificationReport
from taskprune.solver.budget import Budget
from taskprune.solver.landing import MISS
from taskprune.solver.removable import BoundLimit

_log = logging.getLogger("taskprune")

OUTPUTS_NAMED = 8
"""How many outputs that belong to no task the note lists."""


def make_report(
    groups: CouplingGroups,
    scores: ChannelScores,
    plan: PruningPlan,
    budget: Budget,
    verification: VerificationReport | None,
    *,
    notes: tuple[str, ...] = (),
    latency: LatencyComparison | None = None,
    round_to: int = 1,
) -> PruneReport:
    """Gather the figures of one run; ``round_to`` is the multiple that was asked for."""
    if verification is not None and verification.rescaled is not None:
        notes += (str(verification.rescaled),)
    plain = [record.path for record in plan.replacements if record.kind == PLAIN]
    if plain:
        notes += (
            f"The spectral norm of {', '.join(plain[:3])}{' and others' if plain[3:] else ''} is "
            "worked into the weight, since a smaller weight has another norm; training goes on "
            "without it.",
        )
    notes += plan.notes() + _rounding_notes(plan, budget, groups.batch_size, round_to)
    return PruneReport(
        budget=str(budget),
        criterion=scores.criterion,
        calibration_batches=scores.n_batches,
        costs=costs_of_a_sample(plan, groups),
        tasks=tuple(_task_line(row, scores, plan) for row in range(len(scores.tasks))),
        groups=tuple(
            GroupLine(
                name=d.name,
                n_channels=d.n_channels,
                n_kept=d.n_kept,
                tasks=d.tasks,
                conflict=_conflict(scores, d.name),
                modality=d.modality,
            )
            for d in plan.groups
        ),
        frozen=tuple(FrozenDecision.of(group) for group in groups.frozen),
        untraced=groups.untraced,
        verification=verification,
        replacements=plan.replacements,
        limits=_limits(plan),
        notes=tuple(dict.fromkeys(notes)),
        conflict=conflict_report(groups, scores) if scores.knows_conflict else None,
        latency=latency,
        modalities=modality_lines(groups, plan),
    )


def costs_of_a_sample(plan: PruningPlan, groups: CouplingGroups) -> dict[str, tuple[int, int]]:
    """Return a plan's costs with multiply-adds of one sample, not of the traced batch."""
    size = groups.batch_size
    return {
        name: (before // size, after // size) if kind_of(name) == "macs" else (before, after)
        for name, (before, after) in plan.costs.items()
    }


def unowned_outputs(graph: ModelGraph) -> tuple[str, ...]:
    """Return, and log, the note that outputs belong to none of the tasks, if some do not."""
    owned = {path for paths in graph.tasks.values() for path in paths}
    values = {output.value for output in graph.outputs if output.path in owned}
    names = dict.fromkeys(
        f"`{output.path}`"
        for output in graph.outputs
        if output.value not in values
        and output.path not in owned
        and graph.values[output.value].dtype.is_floating_point
    )
    if not graph.tasks or not names:
        return ()
    shown = ", ".join([*names][:OUTPUTS_NAMED]) + (", …" if len(names) > OUTPUTS_NAMED else "")
    note = (
        f"Outputs {shown} belong to no task: no task's score speaks for what only they need. To "
        "keep them, pass a task for them, or name the modules that make them in `protect=`."
    )
    _log.warning("%s", note)
    return (note,)


def unreadable_files(model: nn.Module, plan: PruningPlan) -> tuple[str, ...]:
    """Return the note that a library's own way with a model loses its widths, if it does.

    Models of transformers are built from a configuration, those of ultralytics from a yaml file,
    which both go on saying the original's.
    """
    bases = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(model).__mro__}
    name = type(model).__name__
    if plan.drop and ("transformers", "PreTrainedModel") in bases:
        return (
            f"`save_pretrained` of this {name} writes what `from_pretrained` cannot read, or reads "
            "with random weights: the configuration still says the original's widths. Store it by "
            "`taskprune.integrations.transformers.save_pretrained`, or by "
            "`taskprune.save_checkpoint`.",
        )
    # The integration takes the yaml out while it prunes.
    if plan.drop and ("ultralytics", "BaseModel") in bases and getattr(model, "yaml", None):
        return (
            f"The trainer of ultralytics builds this {name} anew from its yaml file, with the "
            "original's widths, and its own export reads widths that blocks have stored. For a "
            "`YOLO` that trains, exports and saves as ever, prune the `YOLO` itself by "
            "`taskprune.integrations.ultralytics.prune`.",
        )
    return ()


def _rounding_notes(
    plan: PruningPlan, budget: Budget, batch_size: int, multiple: int
) -> tuple[str, ...]:
    """Say which groups gave up the multiple, and where the target is missed in spite of that."""
    if multiple == 1 or not plan.drop:
        return ()
    notes: tuple[str, ...] = ()
    odd = [f"`{d.name}` ({d.n_kept})" for d in plan.groups if d.drop and d.n_kept % multiple]
    if odd:
        notes += (
            f"No multiple of {multiple} channels in {', '.join(odd)}: no multiples in all groups "
            f"were found that land within {MISS:.1%} of the target.",
        )
    if not set(budget.bounds) <= set(plan.costs):
        return notes
    originals = {name: before for name, (before, _) in plan.costs.items()}
    limits = budget.limits(originals, batch_size=batch_size)
    miss = min(
        (limit - plan.costs[name][1]) / max(1, originals[name]) for name, limit in limits.items()
    )
    if miss > MISS:
        notes += (
            f"The result is {miss:.1%} of the original below the target: with multiples of "
            f"{multiple} channels and within the limits nothing nearer was found.",
        )
    return notes


def _limits(plan: PruningPlan) -> tuple[BoundLimit, ...]:
    """Return what held each group in the last round of solving."""
    held = {why.group: why.held_by for why in plan.rationale}
    kept = plan.kept
    return tuple(BoundLimit(name, kept[name], limit) for name, limit in held.items() if limit)


def _conflict(scores: ChannelScores, group: str) -> float:
    known = scores.groups.get(group)
    return float(known.conflict.sum()) if known and known.conflict is not None else 0.0


def _task_line(row: int, scores: ChannelScores, plan: PruningPlan) -> TaskLine:
    task = scores.tasks[row]
    mine = [d for d in plan.groups if task in d.tasks or scores.tasks == BLIND]
    # Scores below zero, of what is redundant, are nothing to lose.
    total = sum(float(own.per_task[row].clamp_min(0).sum()) for own in scores.groups.values())
    removed = sum(
        float(scores[name].per_task[row, list(dropped)].clamp_min(0).sum())
        for name, dropped in plan.drop.items()
        if name in scores.groups  # else it only formed in a later step, and was scored then
    )
    return TaskLine(
        task=task,
        private_groups=sum(d.tasks == (task,) for d in mine),
        shared_groups=sum(len(d.tasks) > 1 for d in mine),
        channels=sum(d.n_channels for d in mine),
        dropped=sum(len(d.drop) for d in mine),
        importance_removed=removed / total if total > 0 else 0.0,
    )
