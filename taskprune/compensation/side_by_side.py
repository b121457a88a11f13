"""Teacher and student side by side on every batch: each reader is solved where it is reached.

The student of a batch stops before a reader that is not solved yet, the teacher after each that it
has passed. When all students are there, their rows and the teacher's decide the reader's new
weights, and the students go on with them. So each reader is fitted to what it will read. Where
queries meet keys that lost channels, both stop as well, for the queries' projection to be folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.compensation.attention_products import Product
from taskprune.compensation.attention_widths import Fold, Taken, agree, foldable
from taskprune.compensation.compensated import ReaderReport
from taskprune.compensation.harm import Change
from taskprune.compensation.lockstep import Stoppable
from taskprune.compensation.picks import located, part_of, spelled
from taskprune.compensation.query_folding import Met
from taskprune.compensation.reading_calls import Read
from taskprune.compensation.reads import Geometry, ProductGeometry, StackGeometry
from taskprune.compensation.refitting import Refitted, Rows, refit
from taskprune.compensation.stopping_forward import StoppingForward
from taskprune.compensation.survey import Reader, Survey
from taskprune.plan.decisions import KeptEntries
from taskprune.plan.plan import PruningPlan
from taskprune.rewrite.surgery import named_tensors


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
        folds: What may be folded into projections that make queries, by name.
        changes: What was done to the student, in order.
        dims: The dims along which readers read what goes, by name of the parameter.
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
        self._of_teacher, self._of_student = named_tensors(teacher), named_tensors(student)
        found = [_of_one_bias(reader) for name in kept for reader in self._readers_of(name)]
        order = {name: number for number, name in enumerate(survey.readers)}
        self.readers = sorted(found, key=lambda reader: order.get(reader.name, len(order)))
        self.folds = foldable(
            survey.queries, self._plan, len(survey.batches), survey.settings.entries
        )
        self.changes: list[Change] = []
        self.solved: set[str] = set()
        self.folded: set[str] = set()
        self.dims: dict[str, set[int]] = {}
        for reader in self.readers:
            if (reads := self.kept_of(reader)) is not None:
                self.dims.setdefault(reads.name, set()).add(reads.dim)
            else:
                self.solved.add(reader.name)
        self.lanes = [
            _Lane(self, n, batch, teacher, student) for n, batch in enumerate(survey.batches)
        ]

    def refit_all(self) -> tuple[ReaderReport, ...]:
        """Go through the readers in the order of the forward pass, then let all run to the end."""
        try:
            reports: dict[str, ReaderReport] = {}
            for step in self._in_order():
                if isinstance(step, Reader):
                    reports[step.name] = self._refit(step)
                else:
                    self._fold(step, reports)
            for lane in self.lanes:
                lane.finish()
        finally:
            calls = [call for lane in self.lanes for call in lane.calls]
            for call in calls:
                call.abandon()
            for call in calls:
                call.join()
        return tuple(reports.values())

    def is_done(self, call: Read | Product) -> bool:
        """Return whether a call may run, with what it takes as it will be."""
        return call.name in (self.solved if isinstance(call, Read) else self.folded)

    def _in_order(self) -> list[Reader | Fold]:
        order = {name: number for number, name in enumerate(self.survey.readers)}
        steps: list[tuple[float, Reader | Fold]] = [
            (order.get(reader.name, len(order)), reader) for reader in self.readers
        ]
        steps += [(fold.queries.after - 0.5, fold) for fold in self.folds.values()]
        return [step for _, step in sorted(steps, key=lambda found: found[0])]

    def _fold(self, fold: Fold, reports: dict[str, ReaderReport]) -> None:
        """Fold into a projection what lets its queries say to the keys what all channels said."""
        name, bias = fold.queries.name, fold.queries.bias
        aware = self.survey.settings.aware and fold.queries.corresponds
        parts, is_whole = [], True
        for lane in self.lanes:
            if lane.approach_product(name):
                met = lane.met(fold, aware=aware)
                is_whole &= met is not None
                parts += [] if met is None else [fold.moments(met)]
        weight = self._of_student[name]
        if agree(is_whole):
            found = fold.solved(parts, weight)
            if not found.is_nothing:
                old = self._of_student[bias].detach() if bias else None
                made, shifted = fold.folded(weight.detach(), old)
                self._change(name, {name: made} | ({bias: shifted} if shifted is not None else {}))
                report = reports.get(name, ReaderReport(name, aware=aware, shifted=bias))
                reports[name] = replace(report, folded=found.gain, undone="")
        self.folded.add(name)

    def _readers_of(self, stack: str) -> list[Reader]:
        """Return the readers through a parameter: one, or each matrix that may be picked of it.

        A stack of which whole matrices go is refused: teacher and student do not pair up.
        """
        readers = self.survey.readers
        depths = {
            len(block)
            for of, block in (located(name, self._of_teacher) for name in readers)
            if of == stack and block
        }
        depth = max(depths, default=0)
        whole = readers.get(stack, Reader(stack))
        if len(depths) > 1:
            whole = replace(whole, refused=whole.refused or "it is picked apart in several ways")
        is_stack = depth or isinstance(whole.geometry, StackGeometry)
        if is_stack and any((stack, dim) in self._plan for dim in range(depth or 1)):
            whole = replace(whole, refused=whole.refused or "whole matrices of it go")
        if whole.refused or not depth:
            return [whole]
        sizes = self._of_teacher[stack].shape[:depth]
        blocks = [spelled(stack, block) for block in product(*map(range, sizes))]
        return [readers.get(name, Reader(name)) for name in blocks]

    def kept_of(self, reader: Reader) -> KeptEntries | None:
        """Return what a reader keeps of the dim that it reads; ``None`` if it loses nothing."""
        if reader.geometry is None or reader.refused:
            return None
        stack, block = located(reader.name, self._of_teacher)
        return self.kept[stack].get(reader.geometry.dim + len(block))

    def _refit(self, reader: Reader) -> ReaderReport:
        kept, geometry = self.kept_of(reader), reader.geometry
        if kept is None or geometry is None:
            self.solved.add(reader.name)
            return ReaderReport(reader.name, undone=reader.refused or "nothing reads through it")
        report = ReaderReport(reader.name, dropped=kept.size - len(kept.keep))
        settings = self.survey.settings
        aware = settings.aware and reader.corresponds and reader.calls == 1
        weight = geometry.blocks(part_of(self._of_teacher, reader.name).double())
        keep = _by_block(kept, geometry, weight)
        outputs = self._outputs(reader.name, geometry, weight)
        shifted = (reader.bias or reader.norm) if reader.shifts_alone else ""
        rows = []
        for lane in self.lanes:
            lane.approach(reader.name)
            rows += lane.rows(reader.name, keep, outputs, aware=aware)
        bias = weight.new_zeros(outputs.shape if geometry.by_output else ())
        if reader.bias and geometry.by_output:
            whole = part_of(self._of_teacher, reader.bias).double()
            bias = whole.reshape(weight.shape[0], -1).gather(1, outputs)
        refitted = refit(
            weight.gather(1, outputs[:, :, None, None].expand(-1, -1, *weight.shape[2:])),
            bias,
            keep,
            rows,
            geometry=geometry,
            intercept=bool(shifted),
            settings=settings,
        )
        self._write(reader, shifted, geometry, refitted)
        self.solved.add(reader.name)
        return replace(
            report,
            gain=refitted.gain,
            ridge=_finite(refitted.ridge),
            tap_ridge=_finite(refitted.tap_ridge),
            aware=aware,
            shifted=shifted,
        )

    def _outputs(self, name: str, geometry: Geometry, weight: Tensor) -> Tensor:
        """Return the numbers of the outputs that stay. Shape ``[G, O]``."""
        stack, block = located(name, self._of_teacher)
        kept = self._plan.get((stack, geometry.out_dim + len(block)))
        if kept is None:
            return torch.arange(weight.shape[1], device=weight.device).expand(len(weight), -1)
        stays = torch.zeros_like(part_of(self._of_teacher, name), dtype=torch.bool)
        stays.index_fill_(geometry.out_dim, torch.tensor(kept.keep, device=stays.device), True)
        by_block = geometry.blocks(stays)[:, :, 0, 0]
        return by_block.nonzero()[:, 1].reshape(len(weight), -1)

    def _write(self, reader: Reader, shifted: str, geometry: Geometry, refitted: Refitted) -> None:
        if refitted.ridge == refitted.tap_ridge == torch.inf:
            return
        new = {reader.name: geometry.weight(refitted.weight)}
        if shifted:
            sign = 1 if reader.bias else -1
            old = part_of(self._of_student, shifted).double()
            new[shifted] = old + sign * refitted.shift.reshape(-1)
        self._change(reader.name, new)

    def _change(self, reader: str, new: Mapping[str, Tensor]) -> None:
        """Put values in place; what changes twice is one change, from the sliced to the last."""
        at = next((n for n, own in enumerate(self.changes) if own.reader == reader), None)
        known = {} if at is None else {own[0]: own for own in self.changes[at].tensors}
        for name, value in new.items():
            tensor = part_of(self._of_student, name)
            after = torch.empty_like(tensor).copy_(value.reshape(tensor.shape))
            before = known[name][2] if name in known else tensor.clone()
            known[name] = (name, tensor, before, after)
        change = Change(reader, tuple(known.values()))
        if at is None:
            self.changes.append(change)
        else:
            self.changes[at] = change
        change.redo()


class _Lane:
    """Teacher and student on one batch."""

    def __init__(
        self, run: SideBySide, number: int, batch: Any, teacher: nn.Module, student: nn.Module
    ) -> None:
        self._run, self._number = run, number
        self._passed: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        self._met: dict[str, Taken | None] = {}
        means = {reader.norm for reader in run.readers}
        of_batch = batch, run.survey.forward, run.dims, means
        met, waits = (self._pass_product, self._wait_product) if run.folds else (None, None)
        self.teacher = StoppingForward(teacher, *of_batch, after=self._pass, on_product=met)
        self.student = StoppingForward(student, *of_batch, before=self._wait, on_product=waits)

    def approach(self, name: str) -> None:
        """Let the student come as far as it can, and the teacher pass a reader."""
        expected = len(self._run.survey.samples.of(name, self._number))
        while len(self._passed.get(name, ())) < expected and not self.teacher.call.is_finished:
            self.teacher.call.advance()
        self._let_student_come()

    def approach_product(self, name: str) -> bool:
        """Let both come to where queries meet keys; return whether they do in this batch."""
        comes = self._number in self._run.survey.queries.loudness.get(name, {})
        while comes and name not in self._met and not self.teacher.call.is_finished:
            self.teacher.call.advance()
        self._let_student_come()
        return comes

    def met(self, fold: Fold, *, aware: bool) -> Met | None:
        """Return the queries and keys of both; ``None`` if they are not those of the survey."""
        name, queries = fold.queries.name, self._run.survey.queries
        product = None
        if aware:
            calls: tuple[Read | Product, ...] = self.student.call.stopped_at or ()
            product = next((c for c in calls if isinstance(c, Product) and c.name == name), None)
            if product is None:
                return None
        counts = queries.weights(name, self._number, self._run.survey.settings.floor)
        return fold.met(self._met.pop(name, None), product, counts)

    def rows(self, name: str, keep: Tensor, outputs: Tensor, *, aware: bool) -> list[Rows]:
        """Return the rows of all calls of a reader in this batch."""
        found = []
        waiting: tuple[Read | Product, ...] = self.student.call.stopped_at or ()
        own = next((c for c in waiting if isinstance(c, Read) and c.name == name), None)
        samples = self._run.survey.samples.of(name, self._number)
        for sample, (x, y) in zip(samples, self._passed.pop(name, []), strict=True):
            whole = x.double()
            if aware and own is not None:
                kept = own.geometry.columns(own.x, sample.rows).double()
            else:
                kept = whole.gather(2, keep[:, None, :, None].expand(-1, *_middle(whole)))
            made = None
            if y is not None:
                made = y.double().gather(2, outputs[:, None].expand(-1, y.shape[1], -1))
            weights = self._run.survey.samples.weights(name, sample)
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

    def _let_student_come(self) -> None:
        """Let the student come as far as it can."""
        call = self.student.call
        while not call.is_finished and all(map(self._run.is_done, call.stopped_at or ())):
            call.advance()

    def _wait(self, reads: tuple[Read, ...]) -> None:
        while not all(map(self._run.is_done, reads)):
            self.student.call.stop(reads)

    def _wait_product(self, product: Product) -> Tensor | None:
        fold = self._run.folds.get(product.name)
        while fold is not None and not self._run.is_done(product):
            self.student.call.stop((product,))
        return None if fold is None else fold.applied(product)

    def _pass_product(self, product: Product) -> None:
        fold = self._run.folds.get(product.name)
        if fold is not None and not self._run.is_done(product):
            self._met[product.name] = fold.taken(product, fold.rows)
            self.teacher.call.stop((product,))

    def _pass(self, reads: tuple[Read, ...]) -> None:
        """Keep the rows that count: the teacher's output may be overwritten further on."""
        for read in reads:
            calls = self._passed.setdefault(read.name, [])
            samples = self._run.survey.samples.of(read.name, self._number)
            if len(calls) < len(samples) and read.name not in self._run.solved:
                rows = samples[len(calls)].rows
                assert read.y is not None
                made = None
                if read.geometry.by_output:
                    made = read.geometry.targets(read.own(read.y), rows)
                calls.append((read.geometry.columns(read.x, rows), made))
        self.teacher.call.stop(reads)


def _of_one_bias(reader: Reader) -> Reader:
    """Take what calls return for unknown where they add several biases, or only some add one."""
    geometry = reader.geometry
    if len(reader.biases) < 2 or geometry is None or not geometry.by_output:
        return reader
    if isinstance(geometry, ProductGeometry | StackGeometry):
        return replace(reader, geometry=type(geometry)(geometry.dim, by_output=False))
    return replace(reader, refused=reader.refused or "its calls add different biases")


def _finite(ridge: float) -> float | None:
    return None if ridge == torch.inf else ridge


def _by_block(kept: KeptEntries, geometry: Geometry, weight: Tensor) -> Tensor:
    """Return the numbers of the channels that stay. Shape ``[G, P]``."""
    stays = torch.zeros(kept.size, dtype=torch.bool, device=weight.device)
    stays[list(kept.keep)] = True
    by_block = geometry.block_of(stays).expand(len(weight), -1)
    return by_block.nonzero()[:, 1].reshape(len(weight), -1)


def _middle(whole: Tensor) -> tuple[int, int, int]:
    return whole.shape[1], -1, whole.shape[3]
