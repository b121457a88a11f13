"""CrossPrune: prune the branches together, by what pruning does to the fused feature."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from taskprune.coupling.groups import CouplingGroups
from taskprune.coupling.modalities import for_criterion
from taskprune.errors import InputError
from taskprune.importance.calibration import differentiable, run_forward, weighted_loss
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.scores import BLIND, ChannelScores, Evidence
from taskprune.modality import FUSION, Modality


@dataclass(frozen=True)
class CrossPruneImportance:
    r"""How much of each channel is left once weights are driven to sparsity together.

    .. math:: \min_W \sum_t L_t(W) + \mu \, \|F(W) - F(W_0)\|^2 / \|F(W_0)\|^2 \quad
              \text{s.t. at most } k \text{ channels are not zero}

    with *F* the fused feature, solved by ADMM, block by block: the modalities take turns, then the
    fusion, the rest of the network free to make up for what the block in turn gives up. A turn
    begins with the whole block pulled to half its strength; the channels with least left are then
    pulled to zero, by gradient steps on loss and distortion and proximal ones on
    :math:`\|W - Z + U\|^2`, where *Z* is *W + U* with them at zero and *U* adds up what is left of
    the difference. As distortion is measured behind the fusion, a branch may give up what another
    carries too, and the other's copy is needed from then on. The score is what was left of a
    channel when its whole block was pulled alike: its root mean square over that at the start. The
    model itself is not changed.

    Published is the idea: pruning of both branches and restriction of feature distortion as one
    multi-objective problem, solved with ADMM. Its equations are not public; everything above is our
    reconstruction with the usual ADMM for pruning (Zhang et al., arXiv:1804.03294), over coupled
    channels in place of single weights.

    Attributes:
        modalities: At least two. ``None``: those that the groups are labelled with, or else those
            found from the model's inputs, see :func:`taskprune.coupling.labelled`.
        fused: Path of the module whose output is the fused feature.
        removed: Fraction of the channels of each modality, and of the fusion, driven to zero; or
            ``{modality or "fusion": fraction}``, where names left out are only scored.
        distortion_weight: :math:`\mu`.
        rho: Which part of the way to *Z* pulled entries go with every step, 0 to 1.
        steps: Gradient steps in each half of a turn; batches are taken one after the other.
        learning_rate: Of these steps (Adam).

    References:
        Lu et al., *CrossPrune: Cooperative pruning for camera-LiDAR fused perception models of
        autonomous driving*, Knowledge-Based Systems 289:111522, 2024.
    """

    modalities: tuple[Modality, ...] | None
    fused: str
    removed: float | Mapping[str, float] = 0.5
    distortion_weight: float = 1.0
    rho: float = 0.1
    steps: int = 8
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        fractions = self.removed.values() if isinstance(self.removed, Mapping) else [self.removed]
        if not fractions or not all(0 < fraction < 1 for fraction in fractions):
            raise InputError(f"`removed` must lie between 0 and 1. Found {self.removed!r}.")
        if self.steps < 1:
            raise InputError(f"`steps` must be at least 1. Found {self.steps!r}.")
        if self.distortion_weight < 0 or not 0 < self.rho < 1 or self.learning_rate <= 0:
            raise InputError(
                "`distortion_weight` must be at least 0, `rho` between 0 and 1, `learning_rate` "
                f"positive. Found {self.distortion_weight}, {self.rho} and {self.learning_rate}."
            )

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel; the criterion does not tell tasks apart.

        Raises:
            InputError: The model lacks a modality or the fused module, or there is no batch.
            TraceError, LossError: See :func:`taskprune.score`.
        """
        groups = for_criterion(groups, self.modalities)
        if self.fused not in {path for path, _ in model.named_modules()}:
            raise InputError(
                f"The fused feature is to be read at `{self.fused}`; the model has no such module."
            )
        batches = tuple(evidence.batches)
        if not evidence.tasks or not batches:
            raise InputError("CrossPrune trains on the tasks' losses. Pass `tasks=` and `data=`.")
        index = ChannelIndex(groups)
        trained = copy.deepcopy(model)
        blocks = self._blocks(index, groups)
        admm = _Admm(self, index, trained, blocks)
        with differentiable(trained):
            scores = index.split(admm.run(evidence, batches))
        return ChannelScores(
            criterion="crossprune",
            tasks=BLIND,
            per_task={name: own[None] for name, own in scores.items()},
            total=scores,
            n_batches=len(batches),
        )

    def _blocks(self, index: ChannelIndex, groups: CouplingGroups) -> list[tuple[Tensor, int]]:
        """Return the channels of each block and how many of them are driven to zero."""
        labels = {group.name: group.modality for group in groups}
        known = {FUSION, *(modality.name for modality in groups.modalities)}
        if isinstance(self.removed, Mapping) and not known.issuperset(self.removed):
            raise InputError(f"`removed` names {set(self.removed) - known}. Expected {known}.")
        blocks = []
        for label in sorted(set(labels.values()), key=lambda name: name == FUSION):
            parts = [part for name, part in index.slices.items() if labels[name] == label]
            channels = torch.cat([torch.arange(part.start, part.stop) for part in parts])
            share = (
                self.removed.get(label, 0.0) if isinstance(self.removed, Mapping) else self.removed
            )
            blocks.append((channels, int(share * len(channels))))
        return blocks


class _Admm:
    """The variables of one run: the model's weights, their sparse copy and the multipliers."""

    def __init__(
        self,
        settings: CrossPruneImportance,
        index: ChannelIndex,
        model: nn.Module,
        blocks: Sequence[tuple[Tensor, int]],
    ) -> None:
        self.settings, self.index, self.model, self.blocks = settings, index, model, blocks
        self.weights = index.find(dict(model.named_parameters()))
        ones = {name: torch.ones_like(weight) for name, weight in self.weights.items()}
        self.n_entries = index.sums(ones, torch.device("cpu")).clamp_min(1)
        self.multipliers = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.gone = torch.zeros(index.n_channels + 1, dtype=torch.bool)

    @torch.no_grad()
    def strength(self) -> Tensor:
        """Return the root mean square of each channel's entries. Shape ``[C]``."""
        squares = {name: weight.detach().square() for name, weight in self.weights.items()}
        return (self.index.sums(squares, torch.device("cpu")) / self.n_entries).sqrt()

    def run(self, evidence: Evidence, batches: Sequence[Any]) -> Tensor:
        """Give every block its turn.

        Returns:
            What was left of each channel when its block was pulled alike. Shape ``[C]``.
        """
        targets = [self._fused(evidence, batch) for batch in batches]
        start = self.strength().clamp_min(torch.finfo(torch.float64).tiny)
        left = torch.ones(self.index.n_channels, dtype=torch.float64)
        optimizer = torch.optim.Adam(self.weights.values(), lr=self.settings.learning_rate)
        done = 0
        for block, count in self.blocks:
            for halved in (block, None):
                for _ in range(self.settings.steps):
                    number = done % len(batches)
                    loss = self._objective(evidence, batches[number], targets[number])
                    self._step(optimizer, loss, halved)
                    done += 1
                    evidence.progress(done)
                if halved is not None:
                    # Against the start: layers differ in scale, and what counts is what goes.
                    left[block] = (self.strength() / start)[block]
                    self.gone[block[left[block].argsort(stable=True)[:count]]] = True
            self.multipliers = self._apart(None)
        return left

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor, halved: Tensor | None) -> None:
        gradients = torch.autograd.grad(loss, tuple(self.weights.values()), allow_unused=True)
        apart = self._apart(halved)
        for weight, gradient in zip(self.weights.values(), gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        # Apart from Adam, whose steps are equally long for strong and weak channels.
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.sub_(self.settings.rho * apart[name])

    @torch.no_grad()
    def _apart(self, halved: Tensor | None) -> dict[str, Tensor]:
        """Return ``W - Z + U``, which is not zero only where entries are pulled.

        Args:
            halved: Channels that are pulled to half of what they are, besides those that are gone.
        """
        apart: dict[str, Tensor] = {}
        pulled = self.gone.double()
        if halved is not None:
            pulled[halved] = pulled[halved].clamp_min(0.5)
        for name, axes in self.index.axes.items():
            weight = self.weights[name].detach()
            # An entry of two channels goes as far as the one that is pulled harder.
            share = torch.zeros_like(weight)
            for axis in axes:
                # Positions without a channel carry -1: the spare last place, which stays.
                along = pulled[axis.channel].to(weight)
                shape = [1] * weight.ndim
                shape[axis.dim] = -1
                share = torch.maximum(share, along.view(shape))
            apart[name] = share * (weight + self.multipliers[name])
        return apart

    def _objective(self, evidence: Evidence, batch: Any, original: Tensor) -> Tensor:
        with _listening(self.model, self.settings.fused) as heard:
            loss = weighted_loss(self.model, batch, evidence, where="a calibration batch")
        moved = (_joined(heard) - original).square().sum()
        distortion = moved / original.square().sum().clamp_min(1e-12)
        restriction = self.settings.distortion_weight * distortion
        return restriction if loss is None else loss + restriction

    @torch.no_grad()
    def _fused(self, evidence: Evidence, batch: Any) -> Tensor:
        with _listening(self.model, self.settings.fused) as heard:
            run_forward(self.model, batch, evidence.forward, where="a calibration batch")
        return _joined(heard)


@contextmanager
def _listening(model: nn.Module, path: str) -> Iterator[list[Any]]:
    heard: list[Any] = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda _module, _args, output: heard.append(output)
    )
    try:
        yield heard
    finally:
        handle.remove()


def _joined(outputs: list[Any]) -> Tensor:
    tensors = [t.flatten() for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor)]
    if not tensors:
        raise InputError("The fused module returned no tensor on a calibration batch.")
    return torch.cat(tensors)
