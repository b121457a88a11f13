"""One optimizer step: teacher, student, losses, gradient, and what to do when it fails."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taskprune.calling.outputs import flatten_outputs
from taskprune.distillation.batches import Position
from taskprune.distillation.buffers import BufferSlots, Snapshot, take_from_main
from taskprune.distillation.history import StepRecord
from taskprune.distillation.objective import (
    BatchLosses,
    output_losses,
    task_losses,
    weighted_sum,
)
from taskprune.distillation.run import Run
from taskprune.distillation.run_checkpoint import RunParts
from taskprune.distillation.sharding import UnusedParameters
from taskprune.distillation.shards import whole
from taskprune.errors import TrainingError
from taskprune.restore.lending import lent

if TYPE_CHECKING:
    from accelerate import Accelerator


_Done = Sequence[tuple[Position, BatchLosses]]
"""The batches of a step, where they lie in the data and what they gave."""


class Stepper:
    """Makes one optimizer step after another.

    Attributes:
        has_failed_together: If a step fails, all processes know; alone, one is all.
    """

    def __init__(
        self, run: Run, accelerator: Accelerator, parts: RunParts, prepared: tuple[Any, Any]
    ) -> None:
        self._run = run
        self._is_alone = self.has_failed_together = accelerator.num_processes == 1
        self._idle = IdleSteps(run.n_steps)
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
            group["lr"] = rate * group["rate_factor"]
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
                    teaches |= self._backward(losses, outputs)
                done.append((position, losses.detached()))
            is_idle = not self._n_processes_where(teaches)
            norm = torch.zeros((), device=self._accelerator.device) if is_idle else self._clipped()
            record = self._agreed(lambda: self._record(step, rate, done, norm, is_idle=is_idle))
        except BaseException:
            self._buffers.restore()
            raise
        if is_idle:
            self._leave_as_it_was()
        else:
            self._update(step)
        last = done[-1][0]
        return record, Position(last.epoch, last.batch + 1)

    def _losses(self, batch: Any, gamma: float) -> tuple[BatchLosses, Any]:
        """Return the losses on a batch, and the student's outputs."""
        run = self._run
        wanted: Any = None
        features: dict[str, Tensor] = {}
        follows_features = bool(run.teacher_recorder.taps) and gamma > 0
        if follows_features or run.settings.output_losses:
            with lent(batch), torch.no_grad(), self._accelerator.autocast():
                wanted, features = run.teacher_recorder.run(lambda: run.forward(run.teacher, batch))
        outputs, of_features = self._model(batch, features if follows_features else {})
        of_tasks = task_losses(run.tasks, outputs, batch)
        of_outputs = output_losses(run.settings.output_losses, outputs, wanted)
        terms = [(run.tasks[name].weight, loss) for name, loss in of_tasks.items()]
        terms += [(gamma, loss) for loss in of_features.values()]
        terms += [(1.0, loss) for loss in of_outputs.values()]
        by_kind = {"task": of_tasks, "feature": of_features, "output": of_outputs}
        return BatchLosses(by_kind, weighted_sum(terms)), outputs

    def _backward(self, losses: BatchLosses, outputs: Any) -> bool:
        """Add up the gradients of one batch; return whether there is anything to learn from it."""
        loss = losses.total
        teaches = loss is not None and loss.requires_grad
        if not teaches:
            attached = [*flatten_outputs(outputs).values(), *losses.by_kind["feature"].values()]
            # The others cannot end their backward pass without this process.
            loss = None if self._is_alone else nothing(attached)
        if loss is not None:
            self._accelerator.backward(loss)
        return teaches

    def _n_processes_where(self, holds: bool) -> int:
        """Return in how many processes something holds; alone, without waiting for the device."""
        if self._is_alone:
            return int(holds)
        flag = torch.tensor(float(holds), device=self._accelerator.device)
        count: Any = self._accelerator.reduce(flag, "sum")
        return int(count.item())

    def _clipped(self) -> Tensor:
        """Clip the gradients; return the norm they had."""
        largest = self._run.settings.gradient_clip
        if self._unused is None:
            norm: Tensor = self._accelerator.clip_grad_norm_(self._parameters, largest)
            return norm
        self._unused.drop()
        return whole(torch.nn.utils.clip_grad_norm_(self._parameters, largest))

    def _leave_as_it_was(self) -> None:
        """Make a step without anything to learn one that never was: no decay, no statistics."""
        self._buffers.restore()
        if self._unused is not None:
            self._unused.drop()
        self._optimizer.zero_grad()

    def _update(self, step: int) -> None:
        """Change all that the gradients of a step change."""
        self._optimizer.step()
        self._optimizer.zero_grad()
        if not self._is_alone:
            # Each process normalises its own share; what is measured, saved and given back is one.
            take_from_main(self._slots.tensors())
        if self._average is not None:
            self._average.update(step + 1)

    def _agreed(self, record: Callable[[], StepRecord]) -> StepRecord:
        """Return this process's record, or raise in all processes what one of them raises.

        A process that went on alone would wait for the others for ever.
        """
        mine: StepRecord | None = None
        error: TrainingError | None = None
        try:
            mine = record()
        except TrainingError as raised:
            error = raised
        if not self._n_processes_where(error is not None):
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
        self, step: int, rate: float, done: _Done, norm: Tensor, *, is_idle: bool
    ) -> StepRecord:
        self._idle.see(step, done[0][0], done[-1][0], is_idle=is_idle)
        named = [
            (position, kind, name, loss)
            for position, losses in done
            for kind, group in losses.by_kind.items()
            for name, loss in group.items()
        ]
        totals = [losses.total for _, losses in done if losses.total is not None]
        values = [*(loss for *_, loss in named), *totals, norm]
        # The only wait for the device in a step; its backward pass is already under way.
        numbers = torch.stack([value.detach().float().reshape(()) for value in values]).tolist()
        seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for (position, kind, name, _), value in zip(named, numbers, strict=False):
            if not math.isfinite(value):
                said = _not_finite(step, position, f"the {kind} loss `{name}`", value)
                raise TrainingError(said)
            seen[kind][name].append(value)
        if not math.isfinite(numbers[-1]) and self._accelerator.scaler is None:
            raise _NormError(_not_finite(step, done[-1][0], "the gradient norm", numbers[-1]))
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
        )


class _NormError(TrainingError):
    """No loss, but the norm of the gradients is not finite."""


def _not_finite(step: int, position: Position, what: str, value: float) -> str:
    return (
        f"Step {step + 1}: {what} is {value} in batch {position.batch} of epoch {position.epoch}. "
        "The student keeps the weights from before this step. Look at that batch's labels, or "
        "lower the learning rate."
    )


class _Nothing(torch.autograd.Function):
    """Zero, whose gradient is none at all: what is behind counts as not used."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:  # noqa: ARG004 - autograd hands it in
        """Return zero."""
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> Any:
        """Return no gradients."""
        return (None,) * len(ctx.needs_input_grad)


def nothing(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return a loss that teaches nothing, for a process whose fellows wait in the backward pass.

    A product with zero would make NaN of infinity, and would have AdamW move what no batch used.

    Args:
        tensors: What the student's forward pass returned.

    Returns:
        The loss; ``None`` where no tensor depends on a trainable parameter.
    """
    attached = [tensor for tensor in tensors if tensor.requires_grad]
    if not attached:
        return None
    loss: Tensor = _Nothing.apply(*attached)  # type: ignore[no-untyped-call]
    return loss


class IdleSteps:
    """Tells some batches without labels from data that teach nothing at all.

    Args:
        n_steps: Length of the run.
    """

    def __init__(self, n_steps: int) -> None:
        self._n_steps = n_steps
        self._since: tuple[int, Position] | None = None

    def see(self, step: int, first: Position, last: Position, *, is_idle: bool) -> None:
        """Take in step number ``step`` (from 0) and its first and last batch.

        Raises:
            TrainingError: Nothing was learnt in a pass through the data, or in the whole run.
        """
        if not is_idle:
            self._since = None
            return
        began, start = self._since = self._since or (step, first)
        is_a_pass = (last.epoch, last.batch + 1) >= (start.epoch + 1, start.batch)
        is_all = began == 0 and step + 1 == self._n_steps
        if is_a_pass or is_all:
            raise TrainingError(
                f"Step {step + 1}: there was nothing to learn from step {began + 1} on, in "
                f"{'a whole pass through the data' if is_a_pass else 'the whole run'}. No task has "
                "labels, and no features or outputs that depend on a trainable parameter are "
                "compared. Add taps or labels, end the run sooner, or keep `feature_weight` above "
                "0."
            )
