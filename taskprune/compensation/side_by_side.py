"""Teacher and student side by side on every batch: each reader is solved where it is reached.

The student of a batch stops before a reader that is not solved yet, the teacher after each that it
has passed. When all students are there, their rows and the teacher's decide the reader's new
weights, and the students go on with them. So each reader is fitted to what it will read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.compensation.compensated import ReaderReport
from taskprune.compensation.harm import Change
from taskprune.compensation.lockstep import Stoppable
from taskprune.compensation.reading_calls import Read, ReadingMode
from taskprune.compensation.reads import Geometry, StackGeometry
from taskprune.compensation.refitting import Refitted, Rows, refit
from taskprune.compensation.survey import Reader, Survey
from taskprune.importance.calibration import run_forward
from taskprune.plan.decisions import KeptEntries
from taskprune.plan.plan import PruningPlan
from taskprune.restore.copying import deep_copy
from taskprune.rewrite.surgery import duplicate, named_tensors


class SideBySide:
    """The pass over the readers.

    Args:
        teacher: The original, with the plan's replacements.
        student: The sliced model; its readers get new data.
        plan: What was sliced.
        kept: What each parameter keeps that may read, by name and dim.
        survey: What is known of the readers, and the batches.

    Attributes:
        readers: Those that may be re-weighted, in the order of the forward pass.
        changes: What was done to the student, in order.
        lanes: Teacher and student on each batch.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        plan: PruningPlan,
        kept: Mapping[str, Mapping[int, KeptEntries]],
        survey: Survey,
    ) -> None:
        self.survey, self.kept = survey, kept
        self._plan = {(kept.name, kept.dim): kept for kept in plan.tensors}
        found = (self._unless_blocks_go(survey.readers.get(name, Reader(name))) for name in kept)
        order = {name: number for number, name in enumerate(survey.readers)}
        self.readers = sorted(found, key=lambda reader: order.get(reader.name, len(order)))
        self.changes: list[Change] = []
        self.solved: set[str] = set()
        self._of_teacher, self._of_student = named_tensors(teacher), named_tensors(student)
        self.lanes = [
            _Lane(self, n, batch, teacher, student) for n, batch in enumerate(survey.batches)
        ]

    def refit_all(self) -> tuple[ReaderReport, ...]:
        """Go through the readers in the order of the forward pass, then let all run to the end."""
        try:
            reports = tuple(self._refit(reader) for reader in self.readers)
            for lane in self.lanes:
                lane.finish()
        finally:
            calls = [call for lane in self.lanes for call in lane.calls]
            for call in calls:
                call.abandon()
            for call in calls:
                call.join()
        return reports

    def _unless_blocks_go(self, reader: Reader) -> Reader:
        """Refuse a stack of matrices of which whole ones go: teacher and student do not pair up."""
        if isinstance(reader.geometry, StackGeometry) and (reader.name, 0) in self._plan:
            return replace(reader, refused=reader.refused or "whole matrices of it go")
        return reader

    def kept_of(self, reader: Reader) -> KeptEntries | None:
        """Return what a reader keeps of the dim that it reads; ``None`` if it loses nothing."""
        if reader.geometry is None or reader.refused:
            return None
        return self.kept[reader.name].get(reader.geometry.dim)

    def _refit(self, reader: Reader) -> ReaderReport:
        kept, geometry = self.kept_of(reader), reader.geometry
        if kept is None or geometry is None:
            self.solved.add(reader.name)
            return ReaderReport(reader.name, undone=reader.refused or "nothing reads through it")
        report = ReaderReport(reader.name, dropped=kept.size - len(kept.keep))
        settings = self.survey.settings
        aware = settings.aware and reader.corresponds and reader.calls == 1
        weight = geometry.blocks(self._of_teacher[reader.name].detach().double())
        keep = _by_block(kept, geometry, weight)
        outputs = self._outputs(reader.name, geometry, weight)
        rows = []
        for lane in self.lanes:
            lane.approach(reader.name)
            rows += lane.rows(reader.name, keep, outputs, aware=aware)
        bias = weight.new_zeros(outputs.shape if geometry.by_output else ())
        if reader.bias and geometry.by_output:
            whole = self._of_teacher[reader.bias].detach().double()
            bias = whole.reshape(weight.shape[0], -1).gather(1, outputs)
        refitted = refit(
            weight.gather(1, outputs[:, :, None, None].expand(-1, -1, *weight.shape[2:])),
            bias,
            keep,
            rows,
            geometry=geometry,
            intercept=bool(reader.bias or reader.norm),
            settings=settings,
        )
        self._write(reader, geometry, refitted)
        self.solved.add(reader.name)
        return replace(
            report,
            gain=refitted.gain,
            ridge=_finite(refitted.ridge),
            tap_ridge=_finite(refitted.tap_ridge),
            aware=aware,
            shifted=reader.bias or reader.norm,
        )

    def _outputs(self, name: str, geometry: Geometry, weight: Tensor) -> Tensor:
        """Return the numbers of the outputs that stay. Shape ``[G, O]``."""
        kept = self._plan.get((name, geometry.out_dim))
        if kept is None:
            return torch.arange(weight.shape[1], device=weight.device).expand(len(weight), -1)
        stays = torch.zeros_like(self._of_teacher[name], dtype=torch.bool)
        stays.index_fill_(geometry.out_dim, torch.tensor(kept.keep, device=stays.device), True)
        by_block = geometry.blocks(stays)[:, :, 0, 0]
        return by_block.nonzero()[:, 1].reshape(len(weight), -1)

    def _write(self, reader: Reader, geometry: Geometry, refitted: Refitted) -> None:
        if refitted.ridge == refitted.tap_ridge == torch.inf:
            return
        new = {reader.name: geometry.weight(refitted.weight)}
        for name, sign in ((reader.bias, 1), (reader.norm, -1)):
            if name:
                old = self._of_student[name].detach().double()
                new[name] = old + sign * refitted.shift.reshape(-1)
        found = []
        for name, value in new.items():
            tensor = self._of_student[name]
            after = torch.empty_like(tensor.data).copy_(value.reshape(tensor.shape))
            found.append((name, tensor, tensor.data, after))
        self.changes.append(Change(reader.name, tuple(found)))
        self.changes[-1].redo()


class _Lane:
    """Teacher and student on one batch."""

    def __init__(
        self, run: SideBySide, number: int, batch: Any, teacher: nn.Module, student: nn.Module
    ) -> None:
        self._run, self._number = run, number
        self._passed: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        self.teacher = _Forward(run, teacher, batch, after=self._pass)
        self.student = _Forward(run, student, batch, before=self._wait)

    def approach(self, name: str) -> None:
        """Let the student come as far as it can, and the teacher pass a reader."""
        expected = len(self._run.survey.samples.get(name, {}).get(self._number, ()))
        while len(self._passed.get(name, ())) < expected and not self.teacher.call.is_finished:
            self.teacher.call.advance()
        while not self.student.call.is_finished and not self._is_waiting():
            self.student.call.advance()

    def rows(self, name: str, keep: Tensor, outputs: Tensor, *, aware: bool) -> list[Rows]:
        """Return the rows of all calls of a reader in this batch."""
        found = []
        waiting: tuple[Read, ...] = self.student.call.stopped_at or ()
        own = next((read for read in waiting if read.name == name), None)
        samples = self._run.survey.samples.get(name, {}).get(self._number, [])
        for sample, (x, y) in zip(samples, self._passed.pop(name, []), strict=True):
            whole = x.double()
            if aware and own is not None:
                kept = own.geometry.columns(own.x, sample.rows).double()
            else:
                kept = whole.gather(2, keep[:, None, :, None].expand(-1, *_middle(whole)))
            made = None
            if y is not None:
                made = y.double().gather(2, outputs[:, None].expand(-1, y.shape[1], -1))
            weights = self._run.survey.weights(name, sample)
            found.append(Rows(whole, kept, made, weights, x.dtype))
        return found

    def finish(self) -> None:
        """Let both run to their ends."""
        for forward in (self.teacher, self.student):
            while not forward.call.is_finished:
                forward.call.advance()

    @property
    def calls(self) -> tuple[Stoppable, Stoppable]:
        """Both forwards."""
        return self.teacher.call, self.student.call

    def _is_waiting(self) -> bool:
        waiting = self.student.call.stopped_at or ()
        return any(read.name not in self._run.solved for read in waiting)

    def _wait(self, reads: tuple[Read, ...]) -> None:
        while any(read.name not in self._run.solved for read in reads):
            self.student.call.stop(reads)

    def _pass(self, reads: tuple[Read, ...]) -> None:
        """Keep the rows that count: the teacher's output may be overwritten further on."""
        for read in reads:
            calls = self._passed.setdefault(read.name, [])
            samples = self._run.survey.samples.get(read.name, {}).get(self._number, ())
            if len(calls) < len(samples) and read.name not in self._run.solved:
                rows = samples[len(calls)].rows
                assert read.y is not None
                made = None
                if read.geometry.by_output:
                    made = read.geometry.targets(read.own(read.y), rows)
                calls.append((read.geometry.columns(read.x, rows), made))
        self.teacher.call.stop(reads)


def _finite(ridge: float) -> float | None:
    return None if ridge == torch.inf else ridge


class _Forward:
    """A model on a batch, that stops at readers.

    It has modules and buffers of its own, so that what the forwards of other batches leave in
    theirs stays apart; what is re-weighted is the model's.

    Attributes:
        batch: A copy of the batch, as the model leaves it.
        outputs: What it made of it, at the end.
    """

    def __init__(
        self,
        run: SideBySide,
        model: nn.Module,
        batch: Any,
        *,
        before: Callable[[tuple[Read, ...]], None] | None = None,
        after: Callable[[tuple[Read, ...]], None] | None = None,
    ) -> None:
        self.batch = self.outputs = None
        means = {reader.norm for reader in run.readers}
        shared = [b for name, b in model.named_buffers() if name in means]
        own = duplicate(model, instead={t: t for t in (*model.parameters(), *shared)}).eval()
        self._before, self._after = before, after
        dims = {
            reader.name: (kept.dim,)
            for reader in run.readers
            if (kept := run.kept_of(reader)) is not None
        }
        mode = ReadingMode(dict(model.named_parameters()), dims, self)

        def call() -> None:
            # Other forwards stand in the middle of this batch: what writes to it needs its own.
            self.batch = deep_copy(batch)
            with mode:
                self.outputs = run_forward(
                    own, self.batch, run.survey.forward, where="a calibration batch"
                )

        self.call = Stoppable(call)

    def about_to_read(self, reads: tuple[Read, ...]) -> None:
        """See :class:`~.reading_calls.Listener`."""
        if self._before is not None:
            self._before(reads)

    def has_read(self, reads: tuple[Read, ...]) -> None:
        """See :class:`~.reading_calls.Listener`."""
        if self._after is not None:
            self._after(reads)

    def has_called(self, function: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        """See :class:`~.reading_calls.Listener`."""


def _by_block(kept: KeptEntries, geometry: Geometry, weight: Tensor) -> Tensor:
    """Return the numbers of the channels that stay. Shape ``[G, P]``."""
    stays = torch.zeros(kept.size, dtype=torch.bool, device=weight.device)
    stays[list(kept.keep)] = True
    by_block = geometry.block_of(stays).expand(len(weight), -1)
    return by_block.nonzero()[:, 1].reshape(len(weight), -1)


def _middle(whole: Tensor) -> tuple[int, int, int]:
    return whole.shape[1], -1, whole.shape[3]
