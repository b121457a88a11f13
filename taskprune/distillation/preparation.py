"""Borrow both models, see how their features fit together, and make a run of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward
from taskprune.calling.outputs import flatten_outputs
from taskprune.calling.task import Task
from taskprune.distillation.accelerator import accelerated
from taskprune.distillation.alignment import Alignment, make_alignment
from taskprune.distillation.batches import preserved_generators, seed_generators
from taskprune.distillation.buffers import BufferSlots
from taskprune.distillation.channel_axes import watched_axes
from taskprune.distillation.default_taps import NothingSharedError, default_taps
from taskprune.distillation.identity import known_models
from taskprune.distillation.objective import StudentObjective
from taskprune.distillation.rate_factors import resting_parts
from taskprune.distillation.recording import FeatureRecorder, tapped
from taskprune.distillation.run import Run
from taskprune.distillation.settings import DistillSettings
from taskprune.distillation.sharding import check_shardable, requested_sharding, shard
from taskprune.distillation.taps import Role, Side, Tap, TapSelector, declared_roles, resolve_taps
from taskprune.errors import InputError
from taskprune.files import make_folder, only_user_of
from taskprune.restore import evaluating, preserved_rng
from taskprune.restore.borrow import attributes_given_back, buffers_given_back
from taskprune.restore.copying import deep_copy
from taskprune.restore.lending import lent

if TYPE_CHECKING:
    from accelerate import Accelerator


_log = logging.getLogger("taskprune")


@contextmanager
def prepared(
    student: nn.Module,
    teacher: nn.Module,
    tasks: Mapping[str, Task],
    data: Iterable[Any],
    settings: DistillSettings,
    channel_map: Mapping[str, Sequence[int]] | None,
    taps: TapSelector | Sequence[TapSelector] | None,
    forward: Forward,
) -> Iterator[tuple[Run, Accelerator]]:
    """Provide what is to be trained, and on what; all that was borrowed is given back afterwards.

    The arguments are those of :func:`taskprune.distillation.distill`, the models without wrappers.

    Raises:
        InputError: The arguments do not fit each other, or another run has the directory.
        MissingDependencyError: Accelerate is not installed.
    """
    directory = None if settings.directory is None else Path(settings.directory)
    option = "`DistillSettings.directory`"
    if directory is not None:
        make_folder(directory, option=option)
    with ExitStack() as stack:
        stack.enter_context(preserved_rng())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(preserved_generators(data))
        accelerator = stack.enter_context(accelerated(settings))
        if directory is not None and accelerator.is_main_process:
            stack.enter_context(only_user_of(directory, option=option))
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
        trained = (student if sharding is None else deep_copy(student)).to(accelerator.device)
        if sharding is not None:
            check_shardable(trained, sharding, settings, ask_student, example)
        stack.enter_context(resting_parts(trained, settings.rate_factors))
        chosen = _taps(teacher, trained, example, taps, tasks=tasks, forward=ask_teacher)
        pair = _Pair(
            trained,
            teacher,
            lambda: ask_student(trained, example),
            lambda: ask_teacher(teacher, example),
            channel_map or {},
        )
        if taps is None and channel_map is not None and not declared_roles(teacher):
            chosen = pair.comparable(chosen)
        teacher_recorder = stack.enter_context(tapped(teacher, chosen, side="teacher"))
        recorder = stack.enter_context(tapped(trained, chosen, side="student"))
        objective = StudentObjective(
            trained,
            pair.alignments(recorder, teacher_recorder),
            recorder=recorder,
            forward=forward,
            feature_loss=settings.feature_loss,
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
        yield run, accelerator


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
        teacher = deep_copy(teacher).to(device)
    with buffers_given_back(teacher), attributes_given_back(teacher), evaluating(teacher):
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
class _Pair:
    """Both models in eval mode, and how each is run once."""

    student: nn.Module
    teacher: nn.Module
    run_student: Callable[[], Any]
    run_teacher: Callable[[], Any]
    channel_map: Mapping[str, Sequence[int]]

    def comparable(self, taps: Sequence[Tap]) -> tuple[Tap, ...]:
        """Leave out tokens of which the student has others, such as learned ones that have gone."""
        with (
            tapped(self.teacher, taps, side="teacher") as teacher,
            tapped(self.student, taps, side="student") as student,
        ):
            aligned = self._aligned(student, teacher)
        return tuple(
            tap for tap, (one, *both) in zip(taps, aligned, strict=True) if _fits(one, *both)
        )

    def alignments(self, student: FeatureRecorder, teacher: FeatureRecorder) -> list[Alignment]:
        """Run both models once and see how their features fit together."""
        aligned = self._aligned(student, teacher)
        for alignment, mine, theirs in aligned:
            alignment(mine, theirs)  # what cannot be compared is said before training
        return [alignment for alignment, *_ in aligned]

    def _aligned(
        self, student: FeatureRecorder, teacher: FeatureRecorder
    ) -> list[tuple[Alignment, Tensor, Tensor]]:
        if not student.taps:
            return []
        with (
            torch.no_grad(),
            watched_axes(self.student) as axes,
            watched_axes(self.teacher) as teacher_axes,
        ):
            _, seen = student.run(self.run_student)
            _, wanted = teacher.run(self.run_teacher)
        found = []
        for tap in student.taps:
            mine, theirs = seen[tap.label], wanted[tap.label]
            is_mapped = tap.path_in("student") == tap.module
            keep = self.channel_map.get(tap.module) if is_mapped else None
            own_axes = (axes.of(mine), teacher_axes.of(theirs))
            alignment = make_alignment(tap, mine, theirs, keep=keep, axes=own_axes)
            found.append((alignment, mine, theirs))
        return found


def _fits(alignment: Alignment, mine: Tensor, theirs: Tensor) -> bool:
    try:
        alignment(mine, theirs)
    except InputError as error:
        _log.warning("%s The automatic choice of taps goes without it.", error)
        return False
    return True


def probing(
    forward: Forward, side: Side, autocast: Callable[[], AbstractContextManager[Any]]
) -> Forward:
    """Return ``forward`` as training runs it: under autocast, with errors that name the types.

    Args:
        forward: ``(model, batch) -> outputs``.
        side: Which model it is called with.
        autocast: Accelerate's, of the run's precision.
    """

    def run(model: nn.Module, batch: Any) -> Any:
        with lent(batch), autocast():
            try:
                return forward(model, batch)
            except RuntimeError as error:
                own = _types(model.parameters())
                given = _types(flatten_outputs(batch).values())
                if not given or own == given:
                    raise
                raise InputError(
                    f"The {side} cannot run on the batch: its parameters are {_named(own)}, the "
                    f"batch is {_named(given)} ({str(error).splitlines()[0]}). Convert the {side} "
                    f"(`{side}.float()`), or the batch in `forward=`."
                ) from error

    return run


def _types(values: Iterable[Any]) -> set[torch.dtype]:
    return {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}


def _named(types: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
