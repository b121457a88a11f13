"""One optimizer step: teacher, student, losses, gradient, and what to do when it fails."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward
from taskprune.calling.outputs import flatten_outputs
from taskprune.calling.task import Task
from taskprune.distillation.batches import Position
from taskprune.distillation.buffers import BufferSlots, Snapshot, take_from_main
from taskprune.distillation.history import StepRecord
from taskprune.distillation.idle import IdleSteps, nothing
from taskprune.distillation.objective import (
    BatchLosses,
    StudentObjective,
    output_losses,
    task_losses,
)
from taskprune.distillation.run_checkpoint import RunParts
from taskprune.distillation.settings import DistillSettings
from taskprune.distillation.sharding import UnusedParameters
from taskprune.distillation.shards import copy_whole, whole
from taskprune.distillation.taps import FeatureRecorder
from taskprune.distillation.weighting import DISTILLATION
from taskprune.errors import InputError, TrainingError
from taskprune.restore.lending import lent

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Run:
    """Everything a run needs, checked and on its device.

    Attributes:
        objective: The student with its alignments.
        teacher: In eval mode.
        teacher_recorder: Reads the teacher's taps.
        tasks: Losses and weights.
        data: The batches.
        forward: ``(model, batch) -> outputs``.
        settings: The user's settings.
        n_steps: Optimizer steps in all.
        identity: What must agree for a run to go on.
        original: The user's student, where the objective holds a sharded copy of it.
    """

    objective: StudentObjective
    teacher: nn.Module
    teacher_recorder: FeatureRecorder
    tasks: Mapping[str, Task]
    data: Iterable[Any]
    forward: Forward
    settings: DistillSettings
    n_steps: int
    identity: Mapping[str, Any]
    original: nn.Module | None = None

    def give_back(self) -> None:
        """Give the user's student the weights of its sharded copy, if there is one."""
        if self.original is not None:
            copy_whole(self.objective.student, self.original)


class Stepper:
    """Makes one optimizer step after another.

    Attributes:
        learnt: What the weighting of the losses has learnt.
        has_failed_together: If a step fails, all processes know; alone, one is all.
    """

    learnt: dict[str, float]

    def __init__(
        self, run: Run, accelerator: Accelerator, parts: RunParts, prepared: tuple[Any, Any]
    ) -> None:
        self._run = run
        self.learnt = {}
        self.has_failed_together = accelerator.num_processes == 1
        self._norms: dict[str, float] = {}
        self._idle = IdleSteps(run.n_steps)
        self._shared = _shared_parameters(run)
        self._accelerator = accelerator
        self._model, self._optimizer = prepared
        self._average = parts.average
        self._parameters = [p for p in parts.model.parameters() if p.requires_grad]
        self._rates = run.settings.learning_rates(run.n_steps)
        self._feature_weights = run.settings.feature_weights
        # A forward pass that ends in NaN has already spoilt the running statistics.
        self._slots = BufferSlots(run.objective.student)
        self._buffers = Snapshot(self._slots)
        is_sharded = run.original is not None
        self._unused = UnusedParameters(parts.model, accelerator) if is_sharded else None

    def step(
        self, step: int, batches: Iterator[tuple[Position, Any]]
    ) -> tuple[StepRecord, Position]:
        """Make step number ``step`` (from 0); return its record and where the data goes on."""
        rate = self._rates(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._buffers.take()
        gamma = self._feature_weights(step)
        done: list[tuple[Position, BatchLosses]] = []
        teaches = False
        try:
            for _ in range(self._run.settings.accumulation):
                position, batch = next(batches)
                # Models may write to what they are given, and a list of batches comes around again.
                with lent(batch), self._accelerator.accumulate(self._model):
                    losses, outputs = self._losses(batch, gamma)
                    if self._shared:
                        losses = losses.with_gradient_norms(self._shared)
                    teaches |= self._backward(losses, outputs)
                done.append((position, losses.detached()))
            is_idle = not self._in_any_process(teaches)
            norm = torch.zeros((), device=self._accelerator.device) if is_idle else self._clipped()
            record = self._agreed(lambda: self._record(step, rate, done, norm, is_idle=is_idle))
        except BaseException:
            self._buffers.restore()
            raise
        if is_idle:
            self._leave_as_it_was()
        else:
            self._update(step, record)
        last = done[-1][0]
        return record, Position(last.epoch, last.batch + 1)

    def _backward(self, losses: BatchLosses, outputs: Any) -> bool:
        """Add up the gradients of one batch; return whether there is anything to learn from it."""
        loss = losses.total()
        teaches = loss is not None and loss.requires_grad
        if not teaches:
            is_alone = self._accelerator.num_processes == 1
            attached = [*flatten_outputs(outputs).values(), *losses.features.values()]
            # The others cannot end their backward pass without this process.
            loss = None if is_alone else nothing(attached)
        if loss is not None:
            self._accelerator.backward(loss)
        return teaches

    def _in_any_process(self, teaches: bool) -> bool:
        if self._accelerator.num_processes == 1:
            return teaches
        flag = torch.tensor(float(teaches), device=self._accelerator.device)
        n_teaching: Any = self._accelerator.reduce(flag, "sum")
        return bool(n_teaching.item())

    def _leave_as_it_was(self) -> None:
        """Make a step without anything to learn one that never was: no decay, no statistics."""
        self._buffers.restore()
        if self._unused is not None:
            self._unused.drop()
        self._optimizer.zero_grad()

    def _update(self, step: int, record: StepRecord) -> None:
        """Change all that the gradients and losses of a step change."""
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._run.objective.regularise(step + 1)
        if self._accelerator.num_processes > 1:
            # Each process normalises its own share; what is measured, saved and given back is one.
            take_from_main(self._slots.tensors())
        if self._average is not None:
            self._average.update(step + 1)
        self._learn_weights(record)

    def _clipped(self) -> Tensor:
        """Clip the gradients; return the norm they had."""
        largest = self._run.settings.gradient_clip
        if self._unused is None:
            norm: Tensor = self._accelerator.clip_grad_norm_(self._parameters, largest)
            return norm
        self._unused.drop()
        return whole(torch.nn.utils.clip_grad_norm_(self._parameters, largest))

    def loss_scale(self) -> dict[str, Any] | None:
        """Return the state of float16's loss scaling."""
        scaler = self._accelerator.scaler
        return None if scaler is None else dict(scaler.state_dict())

    def load_loss_scale(self, state: Mapping[str, Any] | None) -> None:
        """Set the state of float16's loss scaling."""
        if state is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(dict(state))

    def _losses(self, batch: Any, gamma: float) -> tuple[BatchLosses, Any]:
        """Return the losses on a batch, and the student's outputs."""
        run = self._run
        wanted: Any = None
        features: dict[str, Tensor] = {}
        follows_features = bool(run.teacher_recorder.taps) and gamma > 0
        if follows_features or run.settings.output_losses:
            with lent(batch), torch.no_grad(), self._accelerator.autocast():
                wanted, features = run.teacher_recorder.run(lambda: run.forward(run.teacher, batch))
        outputs, losses = self._model(batch, features if follows_features else {})
        weighting = run.settings.weighting
        found = BatchLosses(
            tasks=task_losses(run.tasks, outputs, batch),
            features=losses,
            outputs=output_losses(run.settings.output_losses, outputs, wanted),
            task_weights=self._task_weights(),
            feature_weight=gamma,
            distillation_weight=weighting.weight(self.learnt, DISTILLATION) if weighting else 1.0,
        )
        return found, outputs

    def _task_weights(self) -> dict[str, float]:
        weighting = self._run.settings.weighting
        return {
            name: task.weight * (weighting.weight(self.learnt, name) if weighting else 1.0)
            for name, task in self._run.tasks.items()
        }

    def _weights(self) -> dict[str, float]:
        """Return the learnt weights, as they are recorded."""
        weighting = self._run.settings.weighting
        if weighting is None:
            return {}
        if weighting.shared is None:
            return self._task_weights()
        return {**self._task_weights(), DISTILLATION: weighting.weight(self.learnt, DISTILLATION)}

    def _learn_weights(self, record: StepRecord) -> None:
        weighting = self._run.settings.weighting
        if weighting is None:
            return
        losses = dict(record.tasks)
        if record.features or record.outputs:
            losses[DISTILLATION] = sum(record.features.values()) + sum(record.outputs.values())
        shares = [(losses, self._norms)]
        if self._accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            shares = gather_object(shares)
        self.learnt = weighting.updated(
            self.learnt, _means([x for x, _ in shares]), _means([x for _, x in shares])
        )

    def _agreed(self, record: Callable[[], StepRecord]) -> StepRecord:
        """Return this process's record, or raise in all processes what one of them raises.

        A process that went on alone would wait for the others for ever.
        """
        if self._accelerator.num_processes == 1:
            return record()
        mine: StepRecord | None = None
        error: TrainingError | None = None
        try:
            mine = record()
        except TrainingError as raised:
            error = raised
        flag = torch.tensor(float(error is not None), device=self._accelerator.device)
        n_failed: Any = self._accelerator.reduce(flag, "sum")
        if not n_failed.item():
            assert mine is not None
            return mine
        self.has_failed_together = True
        from accelerate.utils import gather_object

        # One loss spoils the gradient norm in all processes: the loss says more.
        kinds = gather_object(
            [None if error is None else (isinstance(error, _NormError), str(error))]
        )
        said = {i: kind for i, kind in enumerate(kinds) if kind is not None}
        process = min(said, key=lambda i: (said[i][0], i))
        if error is not None and isinstance(error, _NormError) == said[process][0]:
            raise error
        message = said[process][1]
        raise TrainingError(f"Process {process} stopped, and with it all others. {message}")

    def _record(
        self,
        step: int,
        rate: float,
        done: list[tuple[Position, BatchLosses]],
        norm: Tensor,
        *,
        is_idle: bool,
    ) -> StepRecord:
        self._idle.see(step, done[0][0], done[-1][0], is_idle=is_idle)
        named = [
            (number, kind, name, loss)
            for number, (_, losses) in enumerate(done)
            for kind, group in losses.by_kind().items()
            for name, loss in group.items()
        ]
        norms = [(name, x) for _, losses in done for name, x in losses.gradient_norms.items()]
        totals = [total for _, losses in done if (total := losses.total()) is not None]
        values = [*(loss for *_, loss in named), *totals, norm]
        values += [value for _, value in norms]
        # The only wait for the device in a step; its backward pass is already under way.
        numbers = torch.stack([value.detach().float().reshape(()) for value in values]).tolist()
        numbers, after = numbers[: len(numbers) - len(norms)], numbers[len(numbers) - len(norms) :]
        seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for (number, kind, name, _), value in zip(named, numbers, strict=False):
            if not math.isfinite(value):
                raise _not_finite(step, done[number][0], f"the {kind} loss `{name}`", value)
            seen[kind][name].append(value)
        if not math.isfinite(numbers[-1]) and self._accelerator.scaler is None:
            what = "the gradient norm"
            raise _not_finite(step, done[-1][0], what, numbers[-1], kind=_NormError)
        self._norms = _means([{name: value} for (name, _), value in zip(norms, after, strict=True)])
        means = {
            kind: {name: sum(values) / len(values) for name, values in group.items()}
            for kind, group in seen.items()
        }
        return StepRecord(
            step=step + 1,
            epoch=done[-1][0].epoch,
            learning_rate=rate,
            loss=sum(numbers[len(named) : -1]) / len(done),
            tasks=means.get("task", {}),
            features=means.get("feature", {}),
            outputs=means.get("output", {}),
            gradient_norm=numbers[-1],
            weights=self._weights(),
        )


def _shared_parameters(run: Run) -> list[nn.Parameter]:
    """Return the parameters of the module in which gradients are measured, if there is one."""
    weighting = run.settings.weighting
    if weighting is None or weighting.shared is None:
        return []
    modules = dict(run.objective.student.named_modules())
    module = modules.get(weighting.shared)
    found = [] if module is None else [p for p in module.parameters() if p.requires_grad]
    if not found:
        what = "no such module" if module is None else "no parameter that requires a gradient"
        raise InputError(
            f"Gradients are to be measured in the student's module `{weighting.shared}`. Found "
            f"{what}. Name the last module that all tasks share."
        )
    if DISTILLATION in run.tasks:
        raise InputError(
            f"A task is called `{DISTILLATION}`, which is the name of the losses that follow the "
            "teacher where weights are learnt. Rename the task."
        )
    return found


def _means(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average every name over those that have it."""
    values: dict[str, list[float]] = defaultdict(list)
    for share in shares:
        for name, value in share.items():
            values[name].append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


class _NormError(TrainingError):
    """No loss, but the norm of the gradients is not finite."""


def _not_finite(
    step: int,
    position: Position,
    what: str,
    value: float,
    *,
    kind: type[TrainingError] = TrainingError,
) -> TrainingError:
    return kind(
        f"Step {step + 1}: {what} is {value} in batch {position.batch} of epoch {position.epoch}. "
        "The student keeps the weights from before this step. Look at that batch's labels, or "
        "lower the learning rate."
    )
