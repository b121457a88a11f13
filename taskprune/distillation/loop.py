"""The training loop: from the start or from a checkpoint to the end."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import AdamW

from taskprune.distillation.batches import Position, endless
from taskprune.distillation.batchnorm import freeze_batchnorm
from taskprune.distillation.early_stopping import Watch, check_figure
from taskprune.distillation.ema import WeightAverage
from taskprune.distillation.figures import called
from taskprune.distillation.history import HistoryLog, StepRecord
from taskprune.distillation.progress import training_progress
from taskprune.distillation.run_checkpoint import (
    FILE_NAME,
    RunParts,
    RunState,
    load_tensors,
    read_state,
    save_run,
)
from taskprune.distillation.settings import DistillSettings
from taskprune.distillation.sharding import reshard
from taskprune.distillation.stepper import Run, Stepper
from taskprune.errors import InputError, TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger("taskprune")

HISTORY_NAME = "history.jsonl"


def train(run: Run, accelerator: Accelerator) -> tuple[StepRecord, ...]:
    """Train to the end, from the start or from the run's checkpoint; return the history."""
    settings = run.settings
    check_figure(settings.early_stopping, settings.callbacks)
    optimizer = _optimizer(run.objective, settings, run.n_steps)
    # First of all, because wrapping for several processes gives the model new buffers.
    prepared = _prepared(run, accelerator, optimizer)
    average = None
    if settings.ema_decay is not None:
        average = WeightAverage(run.objective.student, settings.ema_decay)
    parts = RunParts(run.objective, optimizer, average)
    path = _checkpoint_path(settings)
    state = _restored(path, parts, run)
    stepper = Stepper(run, accelerator, parts, prepared)
    stepper.load_loss_scale(state.loss_scale)
    stepper.learnt = dict(state.learnt)
    is_main = accelerator.is_main_process
    log = HistoryLog(path.with_name(HISTORY_NAME) if path and is_main else None, step=state.step)

    keeper = _Keeper(run, parts, stepper, log, path, is_main=is_main)
    watch = Watch(settings.early_stopping, settings.callbacks, log.records)
    if is_main and state.step:
        _log_what_is_left(state.step, run, is_over=watch.is_over)
    run.objective.train()
    if settings.frozen_batchnorm:
        freeze_batchnorm(run.objective)
    position = state.position
    with (
        closing(_batches(run, accelerator, state.position)) as batches,
        training_progress(
            settings.console, steps=run.n_steps, done=state.step, visible=is_main
        ) as show,
    ):
        for step in range(state.step, run.n_steps):
            if watch.is_over:
                break
            try:
                record, position = stepper.step(step, batches)
            except TrainingError:
                keeper.keep_what_is_good(step, position, since=state.step)
                raise
            record = _measured(record, run, average)
            log.append(record)
            watch.see(record)
            show(record)
            is_last = record.step == run.n_steps or watch.is_over
            is_due = is_last or record.step % settings.checkpoint_every == 0
            if path is not None and is_due:
                keeper.save(record.step, position)
                accelerator.wait_for_everyone()
    log.flush()
    watch.finish()
    if average is not None:
        average.copy_to_model()
    run.give_back()
    return tuple(log.records)


def _measured(record: StepRecord, run: Run, average: WeightAverage | None) -> StepRecord:
    """Call the callbacks, on the weights that the run would end with, and record their figures."""
    if not run.settings.callbacks:
        return record
    student = run.objective.student
    with average.in_model() if average else nullcontext():
        try:
            for callback in run.settings.callbacks:
                figures = called(callback, record, student)
                record = replace(record, measured={**record.measured, **figures})
        finally:
            if run.original is not None:
                reshard(student)
    return record


@dataclass(frozen=True)
class _Keeper:
    """Writes the run's checkpoint and gives the student its weights."""

    run: Run
    parts: RunParts
    stepper: Stepper
    log: HistoryLog
    path: Path | None
    is_main: bool

    def save(self, step: int, position: Position) -> None:
        """Write the checkpoint; where the student is sharded, all processes take part."""
        if self.path is None or not (self.is_main or self.run.original is not None):
            return
        self.log.flush()
        state = RunState(
            step, position, self.run.identity, self.stepper.loss_scale(), self.stepper.learnt
        )
        save_run(self.path, self.parts, state, writes=self.is_main)

    def keep_what_is_good(self, step: int, position: Position, *, since: int) -> None:
        """Save after a failed step: the run can go on before its batch, once that is mended."""
        if self.run.original is not None and not self.stepper.has_failed_together:
            return  # the others do not know and would not take part
        if step > since:
            self.save(step, position)
        self.run.give_back()


def _checkpoint_path(settings: DistillSettings) -> Path | None:
    if settings.directory is None:
        return None
    return Path(settings.directory) / FILE_NAME


def _restored(path: Path | None, parts: RunParts, run: Run) -> RunState:
    """Give the parts their state of the run's checkpoint, if there is one."""
    if path is None or not path.exists():
        return RunState(0, Position(), run.identity)
    state = read_state(path, run.identity)
    load_tensors(path, parts)
    return state


def _log_what_is_left(step: int, run: Run, *, is_over: bool) -> None:
    folder = run.settings.directory
    if is_over or step >= run.n_steps:
        _log.info("already finished at step %d in %s", step, folder)
    else:
        _log.info("going on from step %d of %d in %s", step, run.n_steps, folder)


def _optimizer(objective: nn.Module, settings: DistillSettings, n_steps: int) -> AdamW:
    trained = [p for p in objective.parameters() if p.requires_grad]
    return AdamW(
        [
            {
                "params": [p for p in trained if p.dim() > 1],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rates(n_steps)(0),
    )


def _prepared(run: Run, accelerator: Accelerator, optimizer: AdamW) -> tuple[Any, Any]:
    """Return model and optimizer as Accelerate distributes them and sets their precision."""
    if run.original is None:
        model, wrapped = accelerator.prepare(run.objective, optimizer)
        return model, wrapped
    # Sharded already: only the precision is left to set.
    model = accelerator.prepare_model(run.objective, evaluation_mode=True)
    return model, accelerator.prepare_optimizer(optimizer)


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
