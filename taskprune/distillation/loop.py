"""The training loop: from the start or from a checkpoint to the end."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import AdamW

from taskprune.distillation.batches import Position, endless
from taskprune.distillation.history import HistoryLog, StepRecord, called
from taskprune.distillation.identity import identity
from taskprune.distillation.interrupting import interrupts_wait
from taskprune.distillation.kept_weights import BestWeights, WeightAverage
from taskprune.distillation.progress import training_progress
from taskprune.distillation.rate_factors import rate_factor, rest_statistics
from taskprune.distillation.run import Run
from taskprune.distillation.run_checkpoint import (
    FILE_NAME,
    RunParts,
    load_run,
    save_run,
)
from taskprune.distillation.sharding import reshard_all
from taskprune.distillation.stepper import Stepper
from taskprune.errors import InputError, TrainingError
from taskprune.files import clear_unfinished

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger("taskprune")

HISTORY_NAME = "history.jsonl"


def train(run: Run, accelerator: Accelerator) -> tuple[tuple[StepRecord, ...], int]:
    """Train to the end, from the start or from the run's checkpoint.

    Returns:
        The history, and the step whose weights the student has.
    """
    settings = run.settings
    known = identity(run)
    # Before all else, because wrapping for several processes gives the model new buffers.
    model, optimizer, parts = _prepared(run, accelerator)
    state = parts.state(0, Position(), known)
    is_main = accelerator.is_main_process
    path = None if settings.directory is None else Path(settings.directory) / FILE_NAME
    history = path.with_name(HISTORY_NAME) if path and is_main else None
    if path and history:
        clear_unfinished(path)
        clear_unfinished(history)
    if path is not None and path.exists():
        state = load_run(path, parts, known)
    stepper = Stepper(run, accelerator, parts, (model, optimizer))
    log = HistoryLog(history, step=state.step, digest=state.history)
    keeper = _Keeper(run, parts, stepper, log, path, known, is_main=is_main)
    if is_main and state.step:
        _log_what_is_left(state.step, run)
    _begin(run, parts)
    position = state.position
    # Several processes would not stop at the same step.
    alone = path is not None and accelerator.num_processes == 1
    with (
        interrupts_wait() if alone else nullcontext(lambda: False) as is_interrupted,
        closing(_batches(run, accelerator, state.position)) as batches,
        training_progress(
            settings.console, steps=run.n_steps, done=state.step, visible=is_main
        ) as show,
    ):
        for step in range(state.step, run.n_steps):
            try:
                record, position = stepper.step(step, batches)
            except TrainingError:
                keeper.keep_what_is_good(step, position, since=state.step)
                raise
            record = _measured(record, run, parts)
            log.append(record)
            show(record)
            is_due = record.step == run.n_steps or record.step % settings.checkpoint_every == 0
            stops = is_interrupted()
            if path is not None and (is_due or stops):
                keeper.save(record.step, position)
                accelerator.wait_for_everyone()
            if stops:
                raise KeyboardInterrupt(f"Saved after step {record.step}, in {settings.directory}.")
    log.flush()
    return tuple(log.records), _end(run, parts)


def _prepared(run: Run, accelerator: Accelerator) -> tuple[Any, Any, RunParts]:
    """Return model and optimizer as Accelerate distributes them, and what has state."""
    objective, settings = run.objective, run.settings
    optimizer = AdamW(_groups(run), lr=settings.learning_rates(run.n_steps)(0))
    if run.original is None:
        model, wrapped = accelerator.prepare(objective, optimizer)
    else:  # sharded already: only the precision is left to set
        model = accelerator.prepare_model(objective, evaluation_mode=True)
        wrapped = accelerator.prepare_optimizer(optimizer)
    average = best = None
    if settings.ema_decay is not None:
        average = WeightAverage(objective.student, settings.ema_decay)
    if settings.keep_best is not None:
        best = BestWeights(objective.student, settings.keep_best)
    return model, wrapped, RunParts(objective, optimizer, accelerator.scaler, average, best)


def _groups(run: Run) -> list[dict[str, Any]]:
    """Return the parameters to train, by how fast they learn and whether they decay."""
    settings, student = run.settings, run.objective.student
    factors = {id(p): rate_factor(n, settings.rate_factors) for n, p in student.named_parameters()}
    groups: dict[tuple[float, bool], list[Tensor]] = {(1.0, True): [], (1.0, False): []}
    for parameter in run.objective.parameters():
        if parameter.requires_grad:
            factor = factors.get(id(parameter), 1.0)  # adapters are no part of the student
            groups.setdefault((factor, parameter.dim() > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if decays else 0.0,
            "rate_factor": factor,
        }
        for (factor, decays), parameters in groups.items()
    ]


def _begin(run: Run, parts: RunParts) -> None:
    """Put the student into training mode, and measure it where its best weights are to be kept."""
    run.objective.train()
    if run.settings.frozen_batchnorm:
        for module in run.objective.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.eval()  # it uses its statistics, and leaves them as they are
    rest_statistics(run.objective.student, run.settings.rate_factors)
    if parts.best is not None and parts.best.standing is None:
        with _lent_student(run, parts.average):
            parts.best.begin(run.teacher, run.objective.student)


def _end(run: Run, parts: RunParts) -> int:
    """Give the student the weights that it ends with; return the step that they are of."""
    step = run.n_steps
    if parts.best is not None:
        step = parts.best.give_best()
    elif parts.average is not None:
        parts.average.give()
    run.give_back()
    return step


def _measured(record: StepRecord, run: Run, parts: RunParts) -> StepRecord:
    """Call the callbacks, on the weights that the run would end with, and record their figures."""
    student, best = run.objective.student, parts.best
    is_due = best is not None and best.is_due(record.step, run.n_steps)
    if not (run.settings.callbacks or is_due):
        return record
    with _lent_student(run, parts.average):
        for callback in run.settings.callbacks:
            figures = called(callback, record, student)
            record = replace(record, measured={**record.measured, **figures})
        if best is not None and is_due:
            figures = best.validation.measured(student)
            record = replace(record, measured={**record.measured, **figures})
            best.see(record.step, figures)
    return record


@contextmanager
def _lent_student(run: Run, average: WeightAverage | None) -> Iterator[None]:
    """Give the student, while others look at it, the weights that the run would end with."""
    with average.in_model() if average else nullcontext():
        try:
            yield
        finally:
            if run.original is not None:
                reshard_all(run.objective.student)


@dataclass(frozen=True)
class _Keeper:
    """Writes the run's checkpoint and gives the student its weights."""

    run: Run
    parts: RunParts
    stepper: Stepper
    log: HistoryLog
    path: Path | None
    identity: Mapping[str, Any]
    is_main: bool

    def save(self, step: int, position: Position) -> None:
        """Write the checkpoint; where the student is sharded, all processes take part."""
        if self.path is None or not (self.is_main or self.run.original is not None):
            return
        self.log.flush()
        state = self.parts.state(step, position, self.identity, self.log.digest)
        save_run(self.path, self.parts, state, writes=self.is_main)

    def keep_what_is_good(self, step: int, position: Position, *, since: int) -> None:
        """Save after a failed step: the run can go on before its batch, once that is mended."""
        if self.run.original is not None and not self.stepper.has_failed_together:
            return  # the others do not know and would not take part
        if step > since:
            self.save(step, position)
        self.run.give_back()


def _log_what_is_left(step: int, run: Run) -> None:
    folder = run.settings.directory
    if step >= run.n_steps:
        _log.info("already finished at step %d in %s", step, folder)
    else:
        _log.info("going on from step %d of %d in %s", step, run.n_steps, folder)


def _batches(
    run: Run, accelerator: Accelerator, start: Position
) -> Generator[tuple[Position, Any], None, None]:
    from accelerate.utils import send_to_device

    data: Any = run.data
    source = data
    if accelerator.num_processes > 1:
        if not isinstance(data, torch.utils.data.DataLoader):
            raise InputError(
                "Training on several processes splits a `torch.utils.data.DataLoader`. Found "
                f"{type(data).__name__}."
            )
        data = accelerator.prepare_data_loader(data)
    batches = endless(
        data, seed=run.settings.seed, process=accelerator.process_index, start=start, source=source
    )
    for position, batch in batches:
        yield position, send_to_device(batch, accelerator.device)
