"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

from taskprune import Task
from taskprune.distillation import WeightAverage
from taskprune.driving.training.kind import PANOPTIC, NetKind
from taskprune.driving.training.settings import TrainSettings
from taskprune.driving.training.state import Run, load_run, save_run
from taskprune.driving.training.stream import AugmentSample, training_batches
from taskprune.driving.training.team import Team
from taskprune.driving.training.watch import Watch
from taskprune.errors import LossError, TrainingError
from taskprune.files import clear_unfinished, make_folder, only_user_of
from taskprune.restore import flushed_denormals, preserved_rng

CHECKPOINT = "last.safetensors"
NET = "net.safetensors"
LOG = "log.jsonl"
"""Files of a run's folder: state to resume from, averaged weights, log."""


Net = TypeVar("Net", bound=nn.Module)


def train(  # noqa: PLR0913 - the run's parts
    net: Net,
    dataset: Dataset[Any],
    *,
    settings: TrainSettings,
    out: Path,
    kind: NetKind = PANOPTIC,
    validation: Iterable[Any] | None = None,
    augment: AugmentSample | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Net:
    """Train a net on its tasks; it ends with the moving average of its weights.

    AdamW on the sum of the task losses. Writes ``last.safetensors`` (to resume from),
    ``net.safetensors`` (the result) and ``log.jsonl`` into `out`. On the CPU a run that was killed
    and resumed ends with the same weights as one that was not, as long as `settings` counts steps.

    Args:
        net: Its weights are changed.
        dataset: Training samples, map-style.
        settings: The recipe.
        out: Folder of the run; made if absent.
        kind: What the net learns, and how its data and files look.
        validation: Labelled batches for ``settings.validate_every``.
        augment: ``(sample, generator) -> sample``.
        resume: Go on from ``last.safetensors`` if it is there.
        console: Where to show progress.

    Returns:
        The net, in eval mode.

    Raises:
        InputError: The folder cannot be made or written to, or another run writes there.
        TrainingError: A loss or gradient stopped being finite.
        CheckpointError: The run in `out` cannot be resumed.
    """
    option = "`out` (`--out`)"
    make_folder(out, option=option)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    team = Team()
    with ExitStack() as stack:
        if team.leads:
            stack.enter_context(only_user_of(out, option=option))
            for name in (CHECKPOINT, NET, LOG):
                clear_unfinished(out / name)
        team.start_alike(net)
        average = WeightAverage(net, settings.average_decay)
        run = Run(net, average, _optimizer(net, settings), settings)
        if resume and (out / CHECKPOINT).exists():
            load_run(run, out / CHECKPOINT)
        batches = training_batches(
            dataset,
            settings=settings,
            collate=kind.collate,
            first_step=run.step,
            team=team,
            augment=augment,
        )
        log_every = settings.log_every
        watch = Watch(out / LOG, console=console, log_every=log_every) if team.leads else None
        net.train()
        stack.enter_context(preserved_rng())
        stack.enter_context(flushed_denormals())
        if watch:
            stack.enter_context(watch.running(run.step))
        _go_through(run, batches, kind=kind, team=team, watch=watch, out=out, validation=validation)
    average.give()
    return net.eval()


def _go_through(
    run: Run,
    batches: Iterator[Any],
    *,
    kind: NetKind,
    team: Team,
    watch: Watch | None,
    out: Path,
    validation: Iterable[Any] | None,
) -> None:
    """Do all steps that are left; the process with a `watch` records, saves and validates."""
    settings = run.settings
    started = time.monotonic() - run.elapsed_s
    while (progress := settings.progress(run.step, run.elapsed_s)) < 1:
        lr = settings.learning_rate(progress)
        losses, norm = _step(run, next(batches), kind, lr=lr, team=team)
        # Only here does the clock move on, in all processes at once: they must stop together.
        run.elapsed_s = team.leaders(time.monotonic() - started)
        if watch is None:
            continue
        progress = settings.progress(run.step, run.elapsed_s)
        values = {"lr": lr, "gradient_norm": norm}
        watch.step(run.step, losses=losses, progress=progress, values=values)
        is_over = progress >= 1
        if is_over or run.step % settings.save_every == 0:
            save_run(run, out / CHECKPOINT)
            with run.average.in_model():
                kind.save(run.net, out / NET)
        if validation is not None and (is_over or run.step % settings.validate_every == 0):
            with run.average.in_model():
                watch.validated(run.step, kind.evaluate(run.net, validation))


def _step(
    run: Run, batch: Any, kind: NetKind, *, lr: float, team: Team
) -> tuple[dict[str, float], float]:
    """Do one optimizer step; return each task's loss and the gradient's norm before clipping."""
    settings = run.settings
    # Denoising draws from torch's global state: the same numbers however often the run stopped.
    torch.manual_seed((settings.seed << 40) + run.step * team.size + team.rank)
    device = next(run.net.parameters()).device
    batch = batch.to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.bfloat16):
        outputs = kind.forward(run.net, batch)
    losses = _losses(outputs, batch, kind.tasks, step=run.step)
    run.optimizer.zero_grad()
    if losses:
        total = torch.stack([kind.tasks[name].weight * loss for name, loss in losses.items()]).sum()
        torch.autograd.backward(total)
    team.average_gradients(run.net)
    norm = float(nn.utils.clip_grad_norm_(run.net.parameters(), settings.clip_norm))
    if not norm < float("inf"):
        raise TrainingError(
            f"Gradients must be finite. Found norm {norm} at step {run.step}. Lower `lr` or resume "
            "from the last checkpoint with another seed."
        )
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    run.average.update(run.step)
    run.step += 1
    return {name: float(loss.detach()) for name, loss in losses.items()}, norm


def _losses(outputs: Any, batch: Any, tasks: Mapping[str, Task], *, step: int) -> dict[str, Tensor]:
    """Return the losses of the tasks that the batch has labels for, all finite."""
    losses: dict[str, Tensor] = {}
    for name, task in tasks.items():
        try:
            loss = task.loss(outputs, batch)
        except LossError as error:
            raise TrainingError(
                f"The loss of task `{name}` failed at step {step}: {error}"
            ) from error
        if loss is None:
            continue
        if not torch.isfinite(loss):
            raise TrainingError(
                f"The loss of task `{name}` must be finite. Found {float(loss.detach())} at step "
                f"{step}. Lower `lr`, or check the labels of this task."
            )
        losses[name] = loss
    return losses


def _optimizer(net: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW that decays the weights of convolutions and linear layers and nothing else."""
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    decayed = [m.weight for m in net.modules() if isinstance(m, layers)]
    known = {id(p) for p in decayed}
    rest = [p for p in net.parameters() if id(p) not in known]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=settings.lr,
        # Not fused: the fused step reads memory in order and so mixes up weights, gradients and
        # moments that differ in layout, without a word.
        foreach=True,
    )
