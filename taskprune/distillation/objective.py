"""One forward pass of the student with its feature losses, and the sum that is minimised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward
from taskprune.calling.task import Task
from taskprune.distillation.alignment import Alignment
from taskprune.distillation.losses import FeatureLoss
from taskprune.distillation.losses.feature_layout import at_least_float32
from taskprune.distillation.regularisation import StudentRegulariser
from taskprune.distillation.settings import OutputLoss
from taskprune.distillation.taps import FeatureRecorder
from taskprune.distillation.weighting import DISTILLATION
from taskprune.errors import LossError


class StudentObjective(nn.Module):
    """The student with its alignments and fitted feature losses as one module.

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
        feature_losses: Sequence[FeatureLoss],
        regularisers: Sequence[StudentRegulariser] = (),
    ) -> None:
        super().__init__()
        self.student = student
        self.alignments = nn.ModuleList(alignments)
        self._recorder = recorder
        self._call = forward
        self._feature_losses = tuple(feature_losses)
        # Those with parameters are trained and saved like the adapters.
        self.fitted = nn.ModuleList(x for x in feature_losses if isinstance(x, nn.Module))
        self._regularisers = tuple(regularisers)
        self.acting = nn.ModuleList(x for x in regularisers if isinstance(x, nn.Module))

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
        for module, feature_loss in zip(self.alignments, self._feature_losses, strict=True):
            assert isinstance(module, Alignment)
            teacher = teacher_features[module.label]
            with torch.autocast(device_type=teacher.device.type, enabled=False):
                student, target = module(features[module.label], teacher)
                loss = feature_loss(student, target)
            losses[module.label] = _scalar(f"the feature loss of tap `{module.label}`", loss)
        return outputs, losses

    def regularise(self, step: int) -> None:
        """Let the regularisers act on the student after optimizer step ``step``, from 1."""
        for regulariser in self._regularisers:
            regulariser.after_step(step)


@dataclass(frozen=True)
class BatchLosses:
    """The losses on one batch, still on the device.

    Attributes:
        tasks: Per task that has labels in the batch.
        features: Per tap.
        outputs: Per output loss.
        task_weights: Per task.
        feature_weight: Of all feature losses.
        distillation_weight: Of all feature and output losses.
        gradient_norms: Per task and for ``"distillation"``, where they are measured.
    """

    tasks: Mapping[str, Tensor]
    features: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    task_weights: Mapping[str, float]
    feature_weight: float
    distillation_weight: float = 1.0
    gradient_norms: Mapping[str, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor | None:
        """Return ``sum_t weight_t task_t + delta (gamma sum_l feature_l + sum_o output_o)``.

        ``None`` where there is no loss at all.
        """
        terms = [self.task_weights[name] * loss for name, loss in self.tasks.items()]
        of_features = self.distillation_weight * self.feature_weight
        terms += [of_features * loss for loss in self.features.values()]
        terms += [self.distillation_weight * loss for loss in self.outputs.values()]
        return _sum(terms) if terms else None

    def terms(self) -> dict[str, Tensor]:
        """Return the unweighted terms whose weights can be learnt."""
        followed = [*self.features.values(), *self.outputs.values()]
        return dict(self.tasks) | ({DISTILLATION: _sum(followed)} if followed else {})

    def with_gradient_norms(self, parameters: Sequence[Tensor]) -> BatchLosses:
        """Return the losses with the norm of each term's gradient in these parameters."""
        norms = {}
        for name, loss in self.terms().items():
            if not loss.requires_grad:
                continue  # features of a frozen part
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            squares = [at_least_float32(g).square().sum() for g in found if g is not None]
            norms[name] = sum(squares, start=torch.zeros((), device=loss.device)).sqrt()
        return replace(self, gradient_norms=norms)

    def by_kind(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the unweighted losses by the word that names their kind."""
        return {"task": self.tasks, "feature": self.features, "output": self.outputs}

    def detached(self) -> BatchLosses:
        """Return the losses without the graph that led to them."""

        def cut(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: loss.detach() for name, loss in losses.items()}

        return replace(
            self, tasks=cut(self.tasks), features=cut(self.features), outputs=cut(self.outputs)
        )


def _sum(losses: Sequence[Tensor]) -> Tensor:
    scalars = [at_least_float32(loss).reshape(()) for loss in losses]
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
