"""Train a student on its tasks and on its frozen teacher's features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.task import Task, check_tasks
from taskprune.calling.wrappers import bare
from taskprune.distillation.accelerator import accelerated
from taskprune.distillation.alignment import Alignment, make_alignment
from taskprune.distillation.batches import check_data, preserved_generators, seed_generators
from taskprune.distillation.buffers import BufferSlots
from taskprune.distillation.channel_axes import watched_axes
from taskprune.distillation.default_taps import NothingSharedError, default_taps
from taskprune.distillation.history import StepRecord
from taskprune.distillation.identity import known_models
from taskprune.distillation.loop import train
from taskprune.distillation.objective import StudentObjective
from taskprune.distillation.probing import probing
from taskprune.distillation.recording import FeatureRecorder, tapped
from taskprune.distillation.regularisation import make_regularisers
from taskprune.distillation.roles import Role, declared_roles
from taskprune.distillation.run import Run
from taskprune.distillation.settings import DistillSettings, checked_settings
from taskprune.distillation.sharding import check_shardable, requested_sharding, shard
from taskprune.distillation.taps import Tap, TapSelector, resolve_taps
from taskprune.errors import InputError
from taskprune.files import make_folder
from taskprune.restore import evaluating, preserved_rng

_log = logging.getLogger("taskprune")


@dataclass(frozen=True)
class DistillResult:
    """What :func:`distill` returns.

    Attributes:
        student: The student that was handed in, trained.
        history: One record per optimizer step, also of steps before the run was resumed.
        taps: The features that were compared.
        step: After which the student had the weights that it has now: the last, or with
            ``keep_best`` the best, which may be 0, the student as it came.
    """

    student: nn.Module
    history: tuple[StepRecord, ...]
    taps: tuple[Tap, ...]
    step: int


def distill(
    student: nn.Module,
    teacher: nn.Module,
    *,
    tasks: Mapping[str, Task],
    data: Iterable[Any],
    settings: DistillSettings | None = None,
    channel_map: Mapping[str, Sequence[int]] | None = None,
    taps: TapSelector | Sequence[TapSelector] | None = None,
    forward: Forward = call_batch,
) -> DistillResult:
    r"""Minimise :math:`\sum_t w_t L_t + \gamma \sum_l D(s_l, t_l[keep_l]) + \sum_o L_o`.

    These are the task losses, the feature losses and, where ``settings`` has any, output losses.

    The teacher runs in eval mode without gradients on the same batch; the student in training
    mode. Each step costs one forward pass of the teacher and one forward and backward pass of the
    student per batch, and one read-back of the losses from the device. A task whose loss is
    ``None`` has no labels in the batch and is left out. A step with nothing to learn at all (no
    labels, and no features or outputs to follow) is recorded and changes nothing.

    The student is trained in place and given back on its own device, with its own training flags
    and without gradients. The teacher, the generators and the data's generators are left as they
    were. With ``settings.directory`` the run can be killed at any moment: the same call goes on
    from the last checkpoint and, on the CPU, ends with the very weights of a run never stopped.
    Started by ``accelerate launch`` on several processes, a DataLoader is split between them; the
    history then shows the main process's losses. Where Accelerate is configured for FSDP 2, the
    student's parameters, gradients and AdamW's state are sharded over the processes instead: a
    copy is trained and its weights are given to the student at the end, or at a ``TrainingError``;
    after any other exception the student is as it was. Callbacks then get the sharded copy.

    After pruning, a gentle recipe takes small steps with batch normalisation frozen and ends with
    the best weights it saw, the ones it began with included::

        DistillSettings(
            steps=300,
            learning_rate=1e-4,
            frozen_batchnorm=True,
            keep_best=Validation(tasks, held_out, every=50),
        )

    Args:
        student: The model to train.
        teacher: The model whose features it follows; must share no parameter with the student.
        tasks: Task losses (and weights) beside the features.
        data: A DataLoader, a list of batches or another iterable that can be gone through again.
            Its order follows from ``settings.seed``, see ``taskprune.distillation.batches``.
        settings: Length, learning rate, weights and the like.
        channel_map: Per module path, the teacher's channel that each student channel is. Paths
            that are not tapped, or tapped with another path in the student, are ignored.
        taps: Modules whose outputs are compared: paths, patterns, types, :class:`Role` or
            :class:`Tap`, which also pairs modules of different architectures. Modules of a role
            that both models declare are paired in order. An empty sequence compares none (plain
            training). ``None``: all roles that the teacher declares, or :func:`default_taps` where
            it declares none; if its tasks share no feature either, none, which is logged.
        forward: ``(model, batch) -> outputs``, for both models.

    Raises:
        InputError: The arguments do not fit each other, and nothing was changed; or, while
            training, what a callback or metric returned is no number.
        LossError: A loss is no scalar, or one of a task or of outputs does not depend on the
            student.
        TrainingError: A loss or gradient became NaN or infinite, or there was nothing to learn in
            a whole pass through the data. The student keeps the weights and buffers from before
            that step.
        CheckpointError: The checkpoint in ``settings.directory`` is damaged or of another run.
        MissingDependencyError: Accelerate is not installed.
    """
    settings = checked_settings(settings)
    tasks = check_tasks(tasks)
    check_data(data)
    student, teacher = bare(student), bare(teacher)
    _check_models(student, teacher)
    directory = None if settings.directory is None else Path(settings.directory)
    if directory is not None:
        make_folder(directory, option="`DistillSettings.directory`")
    with ExitStack() as stack:
        stack.enter_context(preserved_rng())
        stack.enter_context(preserved_generators(data))
        accelerator = stack.enter_context(accelerated(settings))
        n_steps = settings.n_steps(data, n_processes=accelerator.num_processes)
        checksums = stack.enter_context(known_models(student, teacher, directory, accelerator))
        stack.enter_context(_borrowed(student))
        _take_own_buffers(student, teacher)
        seed_generators(settings.seed)
        teacher = stack.enter_context(_frozen(teacher, accelerator.device))
        example = _example(data, accelerator.device)
        ask_student = probing(forward, "student", accelerator.autocast)
        ask_teacher = probing(forward, "teacher", accelerator.autocast)
        sharding = requested_sharding(accelerator)
        trained = (student if sharding is None else deepcopy(student)).to(accelerator.device)
        if sharding is not None:
            check_shardable(trained, sharding, settings, ask_student, example)
        chosen = _taps(teacher, trained, example, taps, tasks=tasks, forward=ask_teacher)
        teacher_recorder = stack.enter_context(tapped(teacher, chosen, side="teacher"))
        recorder = stack.enter_context(tapped(trained, chosen, side="student"))
        alignments = _alignments(
            _Probe(trained, recorder, lambda: ask_student(trained, example)),
            _Probe(teacher, teacher_recorder, lambda: ask_teacher(teacher, example)),
            channel_map or {},
        )
        objective = StudentObjective(
            trained,
            alignments,
            recorder=recorder,
            forward=forward,
            feature_loss=settings.feature_loss,
            regularisers=make_regularisers(settings.regularisers, trained, n_steps),
        )
        if sharding is not None:
            shard(objective, trained, sharding, accelerator, example)
        run = Run(
            objective=objective,
            teacher=teacher,
            teacher_recorder=teacher_recorder,
            tasks=tasks,
            data=data,
            forward=forward,
            settings=settings,
            n_steps=n_steps,
            checksums=checksums,
            original=None if sharding is None else student,
        )
        history, step = train(run, accelerator)
    return DistillResult(student, history, chosen, step)


def _check_models(student: nn.Module, teacher: nn.Module) -> None:
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, nn.Module):
            raise InputError(f"`{name}` must be a `torch.nn.Module`. Found {type(model).__name__}.")
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise InputError("The student has no parameter that requires a gradient.")
    pointers = {p.data_ptr() for p in teacher.parameters() if p.numel()}
    for name, parameter in student.named_parameters():
        if parameter.numel() and parameter.data_ptr() in pointers:
            raise InputError(
                f"Student and teacher share the memory of `{name}`: training one would change the "
                "other. Hand in copies, `copy.deepcopy(model)`."
            )


def _take_own_buffers(student: nn.Module, teacher: nn.Module) -> None:
    """Give the student copies of the buffers that it shares with its teacher.

    Unlike shared parameters they need no refusal: models of one kind may well share a constant.
    """
    pointers = {buffer.data_ptr() for buffer in teacher.buffers() if buffer.numel()}
    slots = BufferSlots(student)
    present = slots.named()
    own = {id(b): b.clone() if b.data_ptr() in pointers else b for b in present.values()}
    slots.bind({name: own[id(buffer)] for name, buffer in present.items()})


@contextmanager
def _borrowed(student: nn.Module) -> Iterator[None]:
    """Give the student back on its device, with its training flags and without gradients."""
    device = next(student.parameters()).device
    with evaluating(student):
        try:
            yield
        finally:
            student.zero_grad(set_to_none=True)
            student.to(device)


@contextmanager
def _frozen(teacher: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Provide the teacher in eval mode on a device; a copy, if it lives on another."""
    if any(tensor.device != device for tensor in chain(teacher.parameters(), teacher.buffers())):
        teacher = deepcopy(teacher).to(device)
    with evaluating(teacher):
        yield teacher


def _example(data: Iterable[Any], device: torch.device) -> Any:
    from accelerate.utils import send_to_device

    for batch in data:
        return send_to_device(batch, device)
    raise InputError("`data` holds no batch. Expected at least one.")


def _taps(
    teacher: nn.Module,
    student: nn.Module,
    example: Any,
    taps: TapSelector | Sequence[TapSelector] | None,
    *,
    tasks: Mapping[str, Task],
    forward: Forward,
) -> tuple[Tap, ...]:
    if taps is None:
        taps = [Role(name) for name in declared_roles(teacher)]
        try:
            taps = taps or default_taps(teacher, example, forward=forward, tasks=tasks)
        except NothingSharedError as error:
            _log.warning("%s The student is trained without features.", error)
    return resolve_taps(teacher, taps, student=student)


@dataclass(frozen=True)
class _Probe:
    """A model in eval mode, what reads its taps, and how it is run once."""

    model: nn.Module
    recorder: FeatureRecorder
    run: Callable[[], Any]


@torch.no_grad()
def _alignments(
    student: _Probe, teacher: _Probe, channel_map: Mapping[str, Sequence[int]]
) -> list[Alignment]:
    """Run both models once and see how their features fit together."""
    taps = student.recorder.taps
    if not taps:
        return []
    with watched_axes(student.model) as axes, watched_axes(teacher.model) as teacher_axes:
        _, seen = student.recorder.run(student.run)
        _, wanted = teacher.recorder.run(teacher.run)
    alignments = []
    for tap in taps:
        mine, theirs = seen[tap.label], wanted[tap.label]
        is_mapped = tap.path_in("student") == tap.module
        keep = channel_map.get(tap.module) if is_mapped else None
        own_axes = (axes.of(mine), teacher_axes.of(theirs))
        alignments.append(make_alignment(tap, mine, theirs, keep=keep, axes=own_axes))
        alignments[-1](mine, theirs)  # what cannot be compared is said before training
    return alignments
