"""The stage: a smaller model whose readers say what the removed channels said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.inputs import check_loaders, task_batches
from taskprune.calling.task import Task, check_tasks
from taskprune.calling.wrappers import bare, uncompiled
from taskprune.compensation.compensated import CompensationResult, LossReport, ReaderReport
from taskprune.compensation.compensation_settings import CompensationSettings
from taskprune.compensation.harm import Change, Harm, runs, settle
from taskprune.compensation.picks import located
from taskprune.compensation.side_by_side import SideBySide
from taskprune.compensation.survey import Survey
from taskprune.errors import InputError
from taskprune.importance.projections import output_tasks
from taskprune.plan.decisions import KeptEntries
from taskprune.plan.plan import PruningPlan
from taskprune.replace import replaced_modules
from taskprune.restore.modes import evaluating
from taskprune.restore.process import preserved_rng
from taskprune.rewrite import apply_plan
from taskprune.rewrite.surgery import named_tensors


def compensate(
    model: nn.Module,
    plan: PruningPlan,
    data: Iterable[Any] | Mapping[str, Iterable[Any]],
    *,
    tasks: Mapping[str, Task] | None = None,
    forward: Forward = call_batch,
    settings: CompensationSettings | None = None,
) -> CompensationResult:
    r"""Prune by a plan, and let the channels that stay say what the others said.

    Whatever reads removed channels (a convolution, a linear layer, an attention's projections) is
    re-weighted by least squares on what it read and made on the calibration data, so that it goes
    on making the same of the channels that stay. That is closed-form, without training.

    Rows (positions, tokens) count by the gradients that the tasks' losses send to them, or, where
    there are no tasks, by how much each output hangs on them. In order of the forward pass, each
    reader is fitted to what it reads in the smaller model, errors of earlier ones included, as far
    as rows of both are the same positions: not behind a top-k, a sort or a gather of computed
    indices. How much it may change is chosen on images kept out of its fit, nothing among the
    choices; and at the end no task's loss on the data is higher than as sliced.

    Cost: of each batch one forward with T backwards, then two forwards of the smaller model and one
    of the original; memory of the live activations of all batches in one forward, without
    gradients.

    Args:
        model: The original; it is left as it was.
        plan: What goes.
        data: Calibration batches, or a loader for each task; gone through once and kept meanwhile.
            A few dozen images suffice. Under several processes each has its own.
        tasks: Whose losses say which rows count; ``None``: every output counts, without labels.
        forward: ``(model, batch) -> outputs``.
        settings: How.

    Returns:
        The smaller model, in eval and train mode as the original, and a record for each reader.

    Raises:
        InputError: There are no batches, or none of the outputs hangs on the weights.
        PlanMismatchError: The plan was made for another model.
        TraceError: The model rejects a batch.
        LossError: A task's loss is not a finite scalar attached to the model.

    References:
        He et al., *Channel Pruning for Accelerating Very Deep Neural Networks*, ICCV 2017 (least
        squares on readers, one after the other). Rows that count by task are ours.
    """
    model = bare(model)
    named = check_tasks(tasks) if tasks else {}
    batches = list(task_batches(check_loaders(data, named)) if isinstance(data, Mapping) else data)
    if not batches:
        raise InputError(
            "Expected at least one calibration batch. Found none: pass `data=`, a loader or list "
            "of batches (an iterator can be gone through only once)."
        )
    with _undisturbed(model):
        with replaced_modules(model, plan.replacements):
            dims = _kept(model, plan)
            counted = named or output_tasks(model, batches[0], forward=forward)
        survey = Survey(dims, counted, forward=forward, settings=settings or CompensationSettings())
        survey.look(model, batches, replacements=plan.replacements)
    return compensate_surveyed(model, plan, survey)


def compensate_surveyed(model: nn.Module, plan: PruningPlan, survey: Survey) -> CompensationResult:
    """Do what :func:`compensate` does after a survey, which scoring can make on its way.

    Args:
        model: The original, that was surveyed.
        plan: What goes.
        survey: What was seen of it. Under several processes each has its own.
    """
    model = bare(model)
    settings = survey.settings
    with _undisturbed(model):
        student = apply_plan(model, plan, verify=False)
        with replaced_modules(model, plan.replacements), torch.no_grad():
            survey.finish()
            kept = _kept(model, plan)
            run = SideBySide(model, student, plan, kept, survey)
            reports, changes = run.refit_all(), run.changes
            losses: Mapping[str, LossReport] = {}
            if settings.cautious and changes:
                losses, undone = _settled(run, student, survey)
                changes = [c for c in changes if c.reader not in undone]
                reports = tuple(_marked(report, undone) for report in reports)
            weights = _of_original(model, plan, run, changes)
    return CompensationResult(student, reports, weights, losses)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    with torch.inference_mode(False), uncompiled(model), preserved_rng():
        yield


def _kept(model: nn.Module, plan: PruningPlan) -> dict[str, dict[int, KeptEntries]]:
    """Return what each parameter keeps that loses channels it reads, by name and dim."""
    parameters = dict(model.named_parameters())
    reading = {name for group in plan.groups if group.drop for name in group.read_by}
    found: dict[str, dict[int, KeptEntries]] = {}
    for kept in plan.tensors:
        if kept.name in parameters and kept.name in reading and parameters[kept.name].ndim > 1:
            found.setdefault(kept.name, {})[kept.dim] = kept
    return found


def _settled(
    run: SideBySide, student: nn.Module, survey: Survey
) -> tuple[dict[str, LossReport], frozenset[str]]:
    """Give back what the tasks lose by; return all losses, and what was undone."""
    harm = Harm(survey.tasks, (lane.teacher.outputs for lane in run.lanes))
    before = harm.of((lane.teacher.outputs, lane.teacher.batch) for lane in run.lanes)
    now = harm.of((lane.student.outputs, lane.student.batch) for lane in run.lanes)
    with evaluating(student):
        sliced, now, undone = settle(
            run.changes, lambda: harm.of(runs(student, survey.batches, survey.forward)), now
        )
    return {n: LossReport(before[n], sliced[n], now[n]) for n in now}, undone


def _marked(report: ReaderReport, undone: frozenset[str]) -> ReaderReport:
    if report.name not in undone:
        return report
    return replace(report, undone="a task was worse off with this range of depth")


def _of_original(
    model: nn.Module, plan: PruningPlan, run: SideBySide, changes: Sequence[Change]
) -> dict[str, Tensor]:
    """Return what changed in the coordinates of the original: 0 where dropped channels are read."""
    originals = named_tensors(model)
    found: dict[str, Tensor] = {}
    for reader in run.readers:
        kept = run.kept_of(reader)
        if kept is not None:
            whole = found.setdefault(kept.name, originals[kept.name].detach().clone())
            _, block = located(reader.name, originals)
            gone = sorted(set(range(kept.size)) - set(kept.keep))
            index = torch.tensor(gone, device=whole.device)
            whole[block].index_fill_(kept.dim - len(block), index, 0)
    changed = {change.reader for change in changes}
    for fold in run.folds.values():
        if fold.change is not None and fold.queries.name in changed:
            for name, dim in ((fold.queries.name, fold.queries.out_dim), (fold.queries.bias, 0)):
                if name:
                    whole = found[name] if name in found else originals[name].detach().clone()
                    rows = torch.tensor(fold.gone, device=whole.device)
                    found[name] = whole.index_fill_(dim, rows, 0)
    for part, after in ((n, after) for c in changes for n, _, _, after in c.tensors):
        name, block = located(part, originals)
        whole = found[name] if name in found else originals[name].detach().clone()
        where = [torch.arange(size, device=whole.device) for size in whole.shape]
        for own in plan.tensors:
            if own.name == name:
                where[own.dim] = torch.tensor(own.keep, device=whole.device)
        where[: len(block)] = [torch.tensor([number], device=whole.device) for number in block]
        whole[torch.meshgrid(*where, indexing="ij")] = after
        found[name] = whole
    return found
