"""Copies of a model's weights that are kept beside it: their running average, the best."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.calling.tolerances import worst_change
from taskprune.distillation.buffers import BufferSlots
from taskprune.distillation.shards import local
from taskprune.distillation.validation import Validation
from taskprune.errors import InputError


class KeptWeights:
    """A copy of a model's parameters and buffers as they are now.

    Values are copied both ways, never tensors exchanged: optimizer, shards and compiled code keep
    theirs. Of a sharded model, each process keeps its own shards; for that reason, and because a
    model may give a buffer a new tensor, this is no ``torch.optim.swa_utils.AveragedModel``, which
    copies modules.

    Attributes:
        tensors: What is kept, by name; tensors that have several names once.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters: dict[str, Tensor] = dict(model.named_parameters())
        self._buffers = BufferSlots(model)
        live = self._parameters | dict(model.named_buffers())
        self.tensors = {name: tensor.detach().clone() for name, tensor in live.items()}

    @torch.no_grad()
    def take(self) -> None:
        """Keep the model's present weights instead."""
        for kept, live in self._pairs():
            kept.copy_(live)

    @torch.no_grad()
    def give(self) -> None:
        """Give the model what is kept."""
        for kept, live in self._pairs():
            live.copy_(kept)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        present = self._parameters | self._buffers.named()
        return [(local(kept), local(present[n]).detach()) for n, kept in self.tensors.items()]


class WeightAverage(KeptWeights):
    """Exponential moving average of parameters and floating-point buffers.

    ``average += (1 - d) * (weight - average)`` with ``d = min(decay, (1 + n) / (10 + n))`` at the
    n-th update, so that the first weights do not linger.

    Args:
        model: The model to follow; its present weights are the first average.
        decay: Between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step number ``step`` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = self._pairs()
        averaged = [(kept, live) for kept, live in pairs if kept.is_floating_point()]
        kept, live = zip(*averaged, strict=True)
        torch._foreach_lerp_(kept, live, 1.0 - decay)
        for kept_count, count in pairs:
            if not kept_count.is_floating_point():
                kept_count.copy_(count)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Lend the model its averaged weights; the live ones come back, also after an error."""
        live = [tensor for _, tensor in self._pairs()]
        before = [tensor.clone() for tensor in live]
        self.give()
        try:
            yield
        finally:
            torch._foreach_copy_(live, before)


_log = logging.getLogger("taskprune")


@dataclass(frozen=True)
class Standing:
    """What the weights that are kept were worth.

    Attributes:
        step: After which they were measured; 0 is the student as it came.
        worst: Change of the task that lost most against the teacher.
        teacher: The teacher's figures.
    """

    step: int
    worst: float
    teacher: Mapping[str, float]


class BestWeights(KeptWeights):
    """The student's weights at the step at which the task that lost most had lost least.

    Args:
        student: Whose weights are kept.
        validation: Measures all tasks.

    Attributes:
        standing: Of what is kept; ``None`` until the run begins.
    """

    def __init__(self, student: nn.Module, validation: Validation) -> None:
        super().__init__(student)
        self.validation = validation
        self.standing: Standing | None = None

    def is_due(self, step: int, n_steps: int) -> bool:
        """Whether the student is measured after a step: every so often, and at the end."""
        return step == n_steps or step % self.validation.every == 0

    def begin(self, teacher: nn.Module, student: nn.Module) -> None:
        """Measure both models before the first step.

        Raises:
            InputError: No task has a figure.
        """
        goal = {n: v for n, v in self.validation.measured(teacher).items() if not math.isnan(v)}
        if not goal:
            raise InputError(
                "The best weights are those with which the task that lost most has lost least. "
                "Found that the metric of every task is NaN for the teacher. Pass `Validation` "
                "data with labels."
            )
        figures = self.validation.measured(student)
        self.standing = Standing(0, worst_change(goal, figures), goal)

    def see(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep the student's present weights if its figures say that they are better."""
        from accelerate.utils import broadcast_object_list

        assert self.standing is not None
        teacher = self.standing.teacher
        # Processes that would keep weights of different steps would end with a mixture.
        worst = broadcast_object_list([worst_change(teacher, figures)])[0]
        if worst > self.standing.worst:
            self.take()
            self.standing = Standing(step, worst, teacher)

    def give_best(self) -> int:
        """Give the student what is kept, and return the step that it is from."""
        assert self.standing is not None
        self.give()
        _log.info(
            "best weights: those of step %d, where the worst task is %.2f %% below the teacher",
            self.standing.step,
            -100 * self.standing.worst,
        )
        return self.standing.step
