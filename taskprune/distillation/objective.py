"""One forward pass of the student with its feature losses, and the sum that is minimised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward
from taskprune.calling.task import Task
from taskprune.distillation.alignment import Alignment
from taskprune.distillation.losses import FeatureLoss
from taskprune.distillation.losses.feature_layout import at_least_float32
from taskprune.distillation.recording import FeatureRecorder
from taskprune.distillation.settings import OutputLoss
from taskprune.errors import LossError


class StudentObjective(nn.Module):
    """The student with its alignments as one module.

    One module, because distributed training and autocast take hold of a module's ``forward``:
    adapters then are synchronised like the student's own parameters, and the user's ``forward``
    still gets the student itself.
    """

    def __init__(
        self,
        student: nn.Module,
        alignments: Sequence[Alignment],
        *,
        recorder: FeatureRecorder,
        forward: Forward,
        feature_loss: FeatureLoss,
    ) -> None:
        super().__init__()
        self.student = student
        self.alignments = nn.ModuleList(alignments)
        self._recorder = recorder
        self._call = forward
        self._feature_loss = feature_loss

    def forward(
        self, batch: Any, teacher_features: Mapping[str, Tensor]
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return ``(outputs, {tap label: feature loss})``; no losses without teacher features.

        Raises:
            LossError: A feature loss is no scalar tensor.
        """
        if not teacher_features:
            return self._call(self.student, batch), {}
        outputs, features = self._recorder.run(lambda: self._call(self.student, batch))
        losses: dict[str, Tensor] = {}
        for module in self.alignments:
            assert isinstance(module, Alignment)
            teacher = teacher_features[module.label]
            with torch.autocast(device_type=teacher.device.type, enabled=False):
                loss = self._feature_loss(*module(features[module.label], teacher))
            losses[module.label] = _scalar(f"the feature loss of tap `{module.label}`", loss)
        return outputs, losses


@dataclass(frozen=True)
class BatchLosses:
    """The losses on one batch, still on the device.

    Attributes:
        by_kind: Unweighted: ``"task"`` losses of tasks that have labels in the batch, ``"feature"``
            losses by tap and ``"output"`` losses by name.
        total: ``sum_t weight_t task_t + gamma sum_l feature_l + sum_o output_o``, which is
            minimised; ``None`` where there is no loss at all.
    """

    by_kind: Mapping[str, Mapping[str, Tensor]]
    total: Tensor | None

    def detached(self) -> BatchLosses:
        """Return the losses without the graph that led to them."""
        cut = {
            kind: {name: loss.detach() for name, loss in losses.items()}
            for kind, losses in self.by_kind.items()
        }
        return BatchLosses(cut, None if self.total is None else self.total.detach())


def weighted_sum(terms: Sequence[tuple[float, Tensor]]) -> Tensor | None:
    """Return the sum of ``weight * loss`` as a scalar in at least float32; ``None`` of nothing."""
    if not terms:
        return None
    scalars = [at_least_float32(weight * loss).reshape(()) for weight, loss in terms]
    return sum(scalars[1:], start=scalars[0])


def task_losses(tasks: Mapping[str, Task], outputs: Any, batch: Any) -> dict[str, Tensor]:
    """Return the loss of every task that has labels in the batch.

    Raises:
        LossError: A loss is no scalar tensor that depends on the student.
    """
    losses = {name: task.loss(outputs, batch) for name, task in tasks.items()}
    return {
        name: _checked(f"the loss of task `{name}`", loss)
        for name, loss in losses.items()
        if loss is not None
    }


def output_losses(
    losses: Mapping[str, OutputLoss], student: Any, teacher: Any
) -> dict[str, Tensor]:
    """Return the losses between both models' outputs.

    Raises:
        LossError: A loss is no scalar tensor that depends on the student.
    """
    return {
        name: _checked(f"output loss `{name}`", loss(student, teacher))
        for name, loss in losses.items()
    }


def _scalar(what: str, loss: object) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise LossError(
            f"Expected {what} to be a scalar tensor. Found {found}. Average over all entries, for "
            "example with `.mean()` or `reduction='mean'`."
        )
    return loss


def _checked(what: str, found: object) -> Tensor:
    loss = _scalar(what, found)
    if not loss.requires_grad:
        raise LossError(
            f"Expected {what} to depend on a trainable parameter of the student in training mode. "
            "It does not: is an output detached, or are all parameters behind it frozen?"
        )
    return loss
