"""AlterMOMA: take away one sensor, let the network adapt, and see which channels were spare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from taskprune.calling.modality import FUSION, Modality
from taskprune.coupling.groups import CouplingGroups
from taskprune.coupling.modalities import for_criterion, mask_points
from taskprune.errors import InputError, short
from taskprune.importance import aggregation
from taskprune.importance.aggregation import Aggregation
from taskprune.importance.backwards import TaskGradients
from taskprune.importance.calibration import (
    differentiable,
    for_each_batch,
    weighted_loss,
)
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.criteria_by_name import criterion
from taskprune.importance.effects import signed_effects
from taskprune.importance.half_precision import LossScale
from taskprune.importance.scores import ChannelScores, Evidence, GroupScores
from taskprune.restore.copying import deep_copy
from taskprune.restore.lending import lent


def discount(contribution: Tensor, redundancy: Tensor) -> Tensor:
    """Return the contribution less the part of it that is redundant; never negative. Ours."""
    both = contribution + redundancy
    return contribution.square() / torch.where(both > 0, both, 1.0)


def difference(contribution: Tensor, redundancy: Tensor) -> Tensor:
    """Return contribution less redundancy, as published (equation 11)."""
    return contribution - redundancy


@criterion
@dataclass(frozen=True)
class AlterMomaImportance:
    r"""Deactivated contribution less reactivated redundancy, per coupled channel.

    .. math:: \hat\Phi_c = |\theta_c \, \partial L / \partial \theta_c|, \qquad
              \tilde\Phi_c = |\theta_c \, \partial L_{-m} / \partial \theta_c
              - \theta_c \, \partial L^B_{-m} / \partial \theta_c|

    .. math:: S_c = C_c \frac{C_c}{C_c + R_c}, \qquad
              C = \alpha \hat\Phi / \overline{\hat\Phi}, \qquad
              R = \beta \tilde\Phi / \overline{\tilde\Phi}

    with :math:`L_{-m}` the loss while the *other* branch's features are masked and :math:`L^B_{-m}`
    the same after *B* steps of training in that state (equations 6 and 10 of the paper; for
    channels outside of the branches the mean over all branches masked in turn, equation 13). What
    training revives once the other sensor is gone was idle because of it: redundant.

    Published for single weights and, in an appendix, for structures; here :math:`\theta_c` are all
    entries of a coupled channel, with the effect summed before the absolute value. Published is
    the *difference* :math:`S_c = C_c - R_c` (equation 11) of shares of the block's sum. Both are
    heavy-tailed and go together, so on a trained net the difference drops many of the very channels
    that matter most; in :func:`discount`, the default, redundancy can take away all of a channel's
    worth but no more. Also ours: effects by the root mean square over batches, since their mean
    vanishes where training has ended; one such score per task, brought together at the end;
    ``normalise="mean"``, which divides by the mean in place of the sum over a block, since with
    sums one global threshold favours small blocks; the reactivation's rate and length, which the
    paper does not state. It runs in eval mode (norms keep their statistics), and needs all
    calibration batches at once in memory.

    Attributes:
        modalities: At least two. Default: those that the groups are labelled with, or else those
            found from the model's inputs, see :func:`taskprune.coupling.labelled`.
        alpha: Weight of the contribution.
        beta: Weight of the redundancy.
        reactivation_steps: *B*, steps of plain gradient descent for each masked branch; batches are
            taken in turn.
        learning_rate: Of the reactivation.
        normalise: ``"mean"`` or ``"sum"`` over the channels of a block.
        combine: ``(C, R) -> S``, of the same shape: :func:`discount` or :func:`difference`.
        aggregate: Brings the tasks' scores together.

    References:
        Sun et al., *AlterMOMA: Fusion Redundancy Pruning for Camera-LiDAR Fusion Models with
        Alternative Modality Masking*, NeurIPS 2024, arXiv:2409.17728.
    """

    modalities: tuple[Modality, ...] | None = None
    alpha: float = 1.0
    beta: float = 1.0
    reactivation_steps: int = 8
    learning_rate: float = 1e-3
    normalise: Literal["mean", "sum"] = "mean"
    combine: Callable[[Tensor, Tensor], Tensor] = discount
    aggregate: Aggregation = aggregation.mean

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.beta < 0 or self.learning_rate <= 0:
            raise InputError(
                "`alpha` and `beta` must be at least 0 and `learning_rate` positive. Found "
                f"{self.alpha}, {self.beta} and {self.learning_rate}."
            )
        if self.reactivation_steps < 1:
            raise InputError(
                f"`reactivation_steps` must be at least 1. Found {short(self.reactivation_steps)}."
            )
        if self.normalise not in ("mean", "sum"):
            raise InputError(f"`normalise` must be 'mean' or 'sum'. Found {short(self.normalise)}.")

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel for every task.

        Raises:
            InputError: The model lacks a modality, or one whose features cannot be masked.
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        groups = for_criterion(groups, self.modalities)
        masks = {m.name: mask_points(groups, m) for m in groups.modalities}
        batches = tuple(evidence.batches)
        once = replace(evidence, batches=batches, settled=None)
        quietly = replace(once, progress=lambda _: None)
        effects = _Effects(ChannelIndex(groups))
        contribution, n_batches = effects.of(model, once)
        redundancy: dict[str, Tensor] = {}
        for name, modules in masks.items():
            adapted = deep_copy(model)
            with _masked(adapted, modules):
                before, _ = effects.of(adapted, quietly)
                self._reactivate(adapted, quietly, batches)
                # The weights of the gradient's factor are the initial ones, equation 10.
                after, _ = effects.of(adapted, quietly, weights=dict(model.named_parameters()))
            redundancy[name] = _size(before - after)
        labels = {group.name: group.modality for group in groups}
        per_task = self._scores(effects.index, labels, _size(contribution), redundancy)
        weights = torch.tensor(
            [t.weight for t in evidence.tasks.values()], dtype=torch.float64, device="cpu"
        )
        per_task = per_task * weights[:, None]
        return ChannelScores(
            criterion="altermoma",
            tasks=tuple(evidence.tasks),
            groups=effects.index.split(GroupScores(self.aggregate(per_task), per_task)),
            n_batches=n_batches,
        )

    def _reactivate(self, model: nn.Module, evidence: Evidence, batches: Sequence[Any]) -> None:
        """Train the masked copy for a few steps of plain gradient descent."""
        parameters = tuple(p for p in model.parameters() if p.is_floating_point())
        scale = LossScale()
        with differentiable(model):
            for step in range(self.reactivation_steps):
                batch = batches[step % len(batches)]
                where = f"step {step + 1} of the reactivation"
                with lent(batch):
                    loss = weighted_loss(model, batch, evidence, where=where)
                    if loss is None:
                        continue
                    gradients = scale.gradients(loss, parameters, retain_graph=False)
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        if gradient is not None:
                            parameter.sub_(self.learning_rate * gradient)

    def _scores(
        self,
        index: ChannelIndex,
        labels: Mapping[str, str],
        contribution: Tensor,
        redundancy: Mapping[str, Tensor],
    ) -> Tensor:
        scores = torch.zeros_like(contribution)
        for label in dict.fromkeys(labels.values()):
            block = torch.cat(
                [
                    torch.arange(part.start, part.stop, device="cpu")
                    for name, part in index.slices.items()
                    if labels[name] == label
                ]
            )
            # A branch is judged with the others masked; what lies behind them with each in turn.
            masked = [r for name, r in redundancy.items() if label == FUSION or name != label]
            spare = torch.stack([self._relative(r[:, block]) for r in masked]).mean(0)
            worth = self.alpha * self._relative(contribution[:, block])
            scores[:, block] = self.combine(worth, self.beta * spare)
        return scores

    def _relative(self, values: Tensor) -> Tensor:
        whole = values.sum(1, keepdim=True) if self.normalise == "sum" else values.mean(1, True)
        return values / torch.where(whole > 0, whole, 1.0)


@contextmanager
def _masked(model: nn.Module, modules: Sequence[str]) -> Iterator[None]:
    """Let the rest of the network see zeros in place of what some modules return.

    The *outputs* of a branch are masked: with its weights at zero, norms would still let their
    shifts through.
    """

    def mask(_module: nn.Module, _args: Any, output: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda tensor: tensor * 0, output)

    handles = [model.get_submodule(path).register_forward_hook(mask) for path in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _size(effects: Tensor) -> Tensor:
    """Return the root mean square over those batches that have labels. Shape ``[T, C]``."""
    return effects.square().nanmean(0).nan_to_num().sqrt()


class _Effects:
    """Signed effects of channels on tasks, batch by batch."""

    def __init__(self, index: ChannelIndex) -> None:
        self.index = index

    def of(
        self, model: nn.Module, evidence: Evidence, *, weights: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, int]:
        """Return the effects and the number of batches, in all processes together.

        The effects have shape ``[B, T, C]`` and are NaN where a batch has no labels of a task.

        Args:
            model: The model to differentiate.
            evidence: Tasks and batches.
            weights: Factors of the gradients. Default: the model's own.
        """
        parameters = self.index.find(dict(model.named_parameters()))
        factors = self.index.find(weights) if weights is not None else parameters
        shape = (len(evidence.tasks), self.index.n_channels)
        effects: list[Tensor] = []

        def add(batch: Iterator[TaskGradients]) -> None:
            effects.append(torch.full(shape, torch.nan, dtype=torch.float64, device="cpu"))
            for found in batch:
                effects[-1][found.task] = signed_effects(
                    found, factors, self.index, torch.device("cpu")
                )

        n_batches = for_each_batch(model, parameters, evidence, add)
        return torch.stack(effects), n_batches
