"""The stage: a smaller model whose readers say what the removed channels said."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.compensation.harm import Change, OutputDistance, settle, task_losses
from taskprune.compensation.listening import Read, ReadingMode
from taskprune.compensation.lockstep import Stoppable
from taskprune.compensation.projections import output_tasks
from taskprune.compensation.refitting import Refitted, Rows, refit
from taskprune.compensation.result import CompensationResult, ReaderReport
from taskprune.compensation.survey import Sample, Survey, Surveyed
from taskprune.restore.modes import evaluating
from taskprune.errors import InputError
from taskprune.calling.forward import Forward, call_batch
from taskprune.restore.borrow import borrowed
from taskprune.importance.calibration import for_each_batch, run_forward
from taskprune.importance.scores import Evidence
from taskprune.calling.inputs import TaskBatch, check_loaders, task_batches
from taskprune.restore.lending import lent
from taskprune.plan.plan import KeptEntries, PruningPlan
from taskprune.replace import replaced_modules
from taskprune.rewrite import apply_plan
from taskprune.rewrite.surgery import named_tensors
from taskprune.calling.task import Task, check_tasks
from taskprune.calling.wrappers import bare, uncompiled


@dataclass(frozen=True)
class CompensationSettings:
    """How readers are re-weighted.

    Attributes:
        floor: What a row counts that no task's loss says anything of; 1 is the mean of a task.
        rows: Rows to look at of each call and batch at most.
        entries: Entries of a call's input to look at at most.
        most_unknowns: Channels times taps up to which a reader's taps are fitted apart.
        aware: Fit to what is read in the smaller network where its rows are the teacher's.
    """

    floor: float = 0.01
    power: float = 0.5
    rows: int = 1024
    entries: int = 2**22
    most_unknowns: int = 1536
    aware: bool = True
    cautious: bool = True


@torch.no_grad()
def compensate(
    model: nn.Module,
    plan: PruningPlan,
    data: Iterable[Any] | Mapping[str, Iterable[Any]],
    *,
    tasks: Mapping[str, Task] | None = None,
    forward: Forward = call_batch,
    settings: CompensationSettings | None = None,
) -> CompensationResult:
    """Prune by a plan, and let the channels that stay say what the others said.

    Args:
        model: The original; it is left as it was.
        plan: What goes.
        data: Calibration batches.
        tasks: Whose losses say which rows count; ``None``: every output counts, without labels.
        forward: ``(model, batch) -> outputs``.
        settings: How.
    """
    model = bare(model)
    settings = settings or CompensationSettings()
    named = check_tasks(tasks) if tasks else {}
    batches = list(task_batches(check_loaders(data, named)) if isinstance(data, Mapping) else data)
    if not batches:
        raise InputError("Expected at least one calibration batch. Found none.")
    with torch.inference_mode(False), uncompiled(model):
        with replaced_modules(model, plan.replacements):
            counted = named or output_tasks(model, batches[0], forward)
            survey = _surveyed(model, plan, counted, batches, forward, settings)
            losses: dict[str, tuple[float, float]] = {}
            student = apply_plan(model, plan, verify=False)
            run = _Run(model, student, plan, survey, batches, forward, settings)
            reports = run.refit_all()
            if settings.cautious:
                with evaluating(student):
                    reports, losses = run.settled(reports, named, counted)
            weights = run.weights_of_original()
    return CompensationResult(student, tuple(reports), weights, losses)


def reading_entries(plan: PruningPlan, model: nn.Module) -> dict[str, list[KeptEntries]]:
    """Return the dims of parameters that shrink, by name."""
    parameters = {name for name, _ in model.named_parameters()}
    found: dict[str, list[KeptEntries]] = {}
    for kept in plan.tensors:
        if kept.name in parameters:
            found.setdefault(kept.name, []).append(kept)
    return found


def _surveyed(
    model: nn.Module,
    plan: PruningPlan,
    tasks: Mapping[str, Task],
    batches: Sequence[Any],
    forward: Forward,
    settings: CompensationSettings,
) -> Survey:
    read_by = {name for group in plan.groups for name in group.read_by}
    readers = {}
    for name, dims in reading_entries(plan, model).items():
        if name in read_by:
            # A weight of a product or convolution reads with its later dim, or with its first if
            # that is the only one to shrink; which it is shows in the call.
            for kept in dims:
                readers.setdefault(name, []).append(kept)
    chosen = _reading_dims(model, plan, readers)
    survey = Survey(
        model,
        chosen,
        len(tasks),
        n_rows=settings.rows,
        entries=settings.entries,
        floor=settings.floor,
        power=settings.power,
    )
    evidence = Evidence(tasks=tasks, batches=batches, forward=forward)
    with torch.enable_grad():
        for_each_batch(model, {}, evidence, survey.add, watch=survey)
    survey.finish()
    return survey


def _reading_dims(
    model: nn.Module, plan: PruningPlan, dims: Mapping[str, list[KeptEntries]]
) -> dict[str, KeptEntries]:
    """Tell the dim that reads from the one that makes."""
    transposed = {
        id(module.weight)
        for module in model.modules()
        if isinstance(
            module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
        )
    }
    parameters = dict(model.named_parameters())
    found = {}
    for name, kept in dims.items():
        n_dims = parameters[name].ndim
        if n_dims < 2:
            continue
        if id(parameters[name]) in transposed:
            reading = [k for k in kept if k.dim == 0]
        else:
            reading = [k for k in kept if k.dim == 1]
        if reading:
            found[name] = reading[0]
    return found


class _Run:
    """The pass of teacher and student side by side."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        plan: PruningPlan,
        survey: Survey,
        batches: Sequence[Any],
        forward: Forward,
        settings: CompensationSettings,
    ) -> None:
        self.teacher, self.student, self.plan = teacher, student, plan
        self.survey, self.batches, self.forward = survey, batches, forward
        self.settings = settings
        self.changes: list[Change] = []
        self.of_teacher = named_tensors(teacher)
        self.of_student = named_tensors(student)
        self.names_of_student = {id(t): name for name, t in self.of_student.items()}
        self.solved: set[str] = set()
        self.kept = {(k.name, k.dim): k for k in plan.tensors}

    def refit_all(self) -> list[ReaderReport]:
        """Go through the readers in the order of the forward pass."""
        lanes = [_Lane(self, number) for number in range(len(self.batches))]
        reports = []
        try:
            with evaluating(self.student):
                for name in self.survey.order:
                    reports.append(self._at(self.survey.readers[name], lanes))
        finally:
            for lane in lanes:
                lane.abandon()
        return reports

    def _at(self, reader: Surveyed, lanes: list[_Lane]) -> ReaderReport:
        dropped = reader.kept.size - len(reader.kept.keep)
        report = ReaderReport(reader.name, dropped, undone=reader.refused)
        if reader.refused:
            self.solved.add(reader.name)
            return report
        for lane in lanes:
            lane.approach(reader)
        first = next((l.reads[reader.name][0] for l in lanes if l.reads.get(reader.name)), None)
        if first is None:
            self.solved.add(reader.name)
            return replace(report, undone="not reached")
        geometry = first.geometry
        aware = self.settings.aware and reader.corresponds and reader.calls == 1
        teacher = self.of_teacher[reader.name]
        blocks = geometry.blocks(teacher.detach().double())
        keep = self._keep(reader, geometry, blocks)
        outputs = self._outputs_kept(reader.name, geometry, blocks)
        rows = [row for lane in lanes for row in lane.rows(reader, keep, outputs, aware=aware)]
        intercept = bool(reader.bias or reader.norm)
        bias = None
        if reader.bias is not None:
            bias = self._of_outputs(self.of_teacher[reader.bias].detach().double(), outputs, blocks)
        refitted = refit(
            blocks.gather(1, outputs[:, :, None, None].expand(-1, -1, *blocks.shape[2:])),
            keep,
            rows,
            geometry=geometry,
            intercept=intercept,
            bias=bias,
            most_unknowns=self.settings.most_unknowns,
        )
        self._write(reader, geometry, refitted)
        self.solved.add(reader.name)
        for lane in lanes:
            lane.reads.pop(reader.name, None)
        return replace(
            report,
            gain=refitted.gain,
            ridge=refitted.ridge,
            tap_ridge=refitted.tap_ridge,
            aware=aware,
            shifted=reader.bias or reader.norm or "",
        )

    def _keep(self, reader: Surveyed, geometry: Any, blocks: Tensor) -> Tensor:
        mask = torch.zeros(reader.kept.size, dtype=torch.bool)
        mask[list(reader.kept.keep)] = True
        by_block = geometry.block_of(mask).expand(blocks.shape[0], -1)
        return by_block.nonzero()[:, 1].reshape(blocks.shape[0], -1).to(blocks.device)

    def _outputs_kept(self, name: str, geometry: Any, blocks: Tensor) -> Tensor:
        n_blocks, n_outputs = blocks.shape[:2]
        everything = torch.arange(n_outputs).expand(n_blocks, -1)
        kept = self.kept.get((name, geometry.out_dim))
        if kept is None:
            return everything.to(blocks.device)
        # Entries of the weight that survive along its output dim, seen as blocks.
        weight = torch.zeros_like(self.of_teacher[name], dtype=torch.bool, device="cpu")
        weight.index_fill_(geometry.out_dim, torch.tensor(kept.keep), True)
        alive = geometry.blocks(weight)[:, :, 0, 0]
        return alive.nonzero()[:, 1].reshape(n_blocks, -1).to(blocks.device)

    def _of_outputs(self, vector: Tensor, outputs: Tensor, blocks: Tensor) -> Tensor:
        return vector.reshape(blocks.shape[0], -1).gather(1, outputs)

    def _write(self, reader: Surveyed, geometry: Any, refitted: Refitted) -> None:
        if refitted.ridge == refitted.tap_ridge == torch.inf:
            return
        small = self.of_student[reader.name]
        found = [(small, geometry.weight(refitted.weight, small.shape))]
        for name, sign in ((reader.bias, 1), (reader.norm, -1)):
            if name:
                vector = self.of_student[name]
                found.append((vector, vector.double() + sign * refitted.shift.reshape(-1)))
        change = Change(
            reader.name,
            tuple((t, t.data, new.to(t.dtype).reshape(t.shape).contiguous()) for t, new in found),
        )
        change.redo()
        self.changes.append(change)

    def settled(
        self, reports: list[ReaderReport], labelled: Mapping[str, Task], counted: Mapping[str, Task]
    ) -> tuple[list[ReaderReport], dict[str, tuple[float, float]]]:
        """Give back what the tasks lose by."""
        if labelled:
            sliced, now, undone = settle(
                self.changes,
                lambda: task_losses(self.student, labelled, self.batches, self.forward),
            )
        else:
            with evaluating(self.teacher):
                distance = OutputDistance(self.teacher, self.batches, self.forward, [*counted])
            sliced, now, undone = settle(self.changes, lambda: distance.of(self.student))
        self.changes = [change for change in self.changes if change.name not in undone]
        reports = [
            replace(r, undone="a task was worse off with it") if r.name in undone else r
            for r in reports
        ]
        return reports, {name: (sliced[name], now[name]) for name in now}

    def weights_of_original(self) -> dict[str, Tensor]:
        """Return what changed in the coordinates of the original."""
        found: dict[str, Tensor] = {}
        for change in self.changes:
            for tensor, _, after in change.tensors:
                name = self.names_of_student[id(tensor)]
                whole = self.of_teacher[name].detach().clone()
                dims = [kept for kept in self.plan.tensors if kept.name == name]
                if name == change.name:
                    reading = self.survey.readers[name].kept
                    gone = torch.ones(reading.size, dtype=torch.bool)
                    gone[list(reading.keep)] = False
                    whole.index_fill_(
                        reading.dim, gone.nonzero().flatten().to(whole.device), 0
                    )
                where = [torch.arange(n, device=whole.device) for n in whole.shape]
                for kept in dims:
                    where[kept.dim] = torch.tensor(kept.keep, device=whole.device)
                whole[torch.meshgrid(*where, indexing="ij")] = after
                found[name] = whole
        return found


class _Lane:
    """Teacher and student on one batch."""

    def __init__(self, run: _Run, number: int) -> None:
        self.run, self.number = run, number
        self.reads: dict[str, list[Read]] = {}
        self.stored: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        self.own_reads: dict[str, Read] = {}
        self._teacher = _Listening(run, run.teacher, run.batches[number], self._teacher_read)
        self._student = _Listening(run, run.student, run.batches[number], None)

    def approach(self, reader: Surveyed) -> None:
        """Let the student come to a reader, and the teacher have passed it."""
        samples = reader.samples.get(self.number, [])
        while not self._teacher.call.is_finished and len(
            self.reads.get(reader.name, [])
        ) < len(samples):
            self._teacher.call.advance()
        while not self._student.call.is_finished:
            waiting = self._student.call.stopped_at
            if waiting and any(r.name not in self.run.solved for r in waiting):
                break
            self._student.call.advance()

    def _teacher_read(self, reads: tuple[Read, ...]) -> bool:
        """Keep the rows that count; return whether somebody may wait for this."""
        for read in reads:
            reader = self.run.survey.readers[read.name]
            if reader.refused:
                continue
            calls = self.reads.setdefault(read.name, [])
            sample = reader.samples[self.number][len(calls)]
            assert read.y is not None
            x = read.geometry.columns(read.x, sample.rows)
            y = read.geometry.targets(read.own(read.y), sample.rows) if read.geometry.by_output \
                else None  # fmt: skip
            self.stored.setdefault(read.name, []).append((x, y))
            calls.append(Read(read.name, read.geometry, read.x.new_empty(0), read.bias))
        return True

    def rows(
        self, reader: Surveyed, keep: Tensor, outputs: Tensor, *, aware: bool
    ) -> list[Rows]:
        """Return the rows of all calls in this batch."""
        found = []
        waiting = self._student.call.stopped_at or ()
        own = next((r for r in waiting if r.name == reader.name), None)
        for sample, (x, y) in zip(
            reader.samples.get(self.number, []), self.stored.pop(reader.name, []), strict=True
        ):
            whole = x.double()
            index = keep[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3])
            kept = whole.gather(2, index)
            if aware and own is not None:
                kept = own.geometry.columns(own.x, sample.rows).double()
            made = None
            if y is not None:
                made = y.double().gather(2, outputs[:, None].expand(-1, y.shape[1], -1))
            weights = reader.weights(sample, self.run.settings.floor, None)
            found.append(Rows(whole, kept, made, weights, x.dtype != torch.float64))
        return found

    def abandon(self) -> None:
        """Let both threads go."""
        self._teacher.call.abandon()
        self._student.call.abandon()


class _Listening:
    """A model that runs on one batch and stops at readers."""

    def __init__(self, run: _Run, model: nn.Module, batch: Any, on_read: Any) -> None:
        # Modules of its own, so that what a forward leaves in them stays its own; the tensors are
        # those of the model.
        memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, memo).eval()
        self.run, self.on_read = run, on_read
        tensors = dict(model.named_parameters())
        readers = run.survey.readers
        read = {n: (tensors[n], r.kept.dim) for n, r in readers.items() if not r.refused}
        self.mode = ReadingMode(read, tensors, self)
        self.batch = batch
        self.call = Stoppable(self._call)

    def _call(self) -> None:
        with self.mode, lent(self.batch):
            run_forward(self.model, self.batch, self.run.forward, where="a calibration batch")

    def about_to_read(self, reads: tuple[Read, ...]) -> None:
        if self.on_read is None:
            while any(r.name not in self.run.solved for r in reads):
                self.call.stop(reads)

    def has_read(self, reads: tuple[Read, ...]) -> None:
        if self.on_read is not None and self.on_read(reads):
            self.call.stop(reads)

    def has_called(self, *_: Any) -> None:
        pass
