"""Train a student on its tasks and on its frozen teacher's features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.task import Task, check_tasks
from taskprune.calling.wrappers import bare
from taskprune.distillation.batches import check_data
from taskprune.distillation.history import StepRecord
from taskprune.distillation.loop import train
from taskprune.distillation.preparation import prepared
from taskprune.distillation.settings import DistillSettings, checked_settings
from taskprune.distillation.taps import Tap, TapSelector
from taskprune.errors import InputError


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
    Ctrl-C makes one after the present step. A finished run goes on with more steps, at the learning
    rates that the longer run has there.
    Started by ``accelerate launch`` on several processes, a DataLoader is split between them; the
    history then shows the main process's losses. Where Accelerate is configured for FSDP 2, the
    student's parameters, gradients and AdamW's state are sharded over the processes instead: a
    copy is trained and its weights are given to the student at the end, or at a ``TrainingError``;
    after any other exception the student is as it was. Callbacks then get the sharded copy.

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
    arguments = (tasks, data, settings, channel_map, taps, forward)
    with prepared(student, teacher, *arguments) as (run, accelerator):
        history, step = train(run, accelerator)
    return DistillResult(student, history, run.teacher_recorder.taps, step)


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
