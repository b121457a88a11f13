"""CrossPrune: prune the branches together, by what pruning does to the fused feature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from taskprune.calling.modality import FUSION, Modality
from taskprune.coupling.groups import CouplingGroups
from taskprune.coupling.modalities import for_criterion
from taskprune.errors import InputError, short
from taskprune.importance.calibration import differentiable, run_forward, weighted_loss
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.scores import BLIND, ChannelScores, Evidence, GroupScores
from taskprune.restore.copying import deep_copy
from taskprune.restore.lending import lent


@dataclass(frozen=True)
class CrossPruneImportance:
    r"""What each channel is worth while weights are driven to sparsity together.

    .. math:: \min_W \sum_t L_t(W) + \mu \, \|F(W) - F(W_0)\|^2 / \|F(W_0)\|^2 \quad
              \text{s.t. at most } k \text{ channels are not zero}

    with *F* the fused feature, solved by ADMM, block by block: the modalities take turns, then the
    fusion, the rest of the network free to make up for what the block in turn gives up. A turn
    begins with the whole block pulled part of the way to zero; the channels that resist least are
    then pulled all the way, by gradient steps on loss and distortion and proximal ones on
    :math:`\|W - Z + U\|^2`, where *Z* is *W + U* with them at zero and *U* adds up what is left of
    the difference. As distortion is measured behind the fusion, a branch may give up what another
    carries too, and the other's copy is needed from then on. The score is the price of a channel,

    .. math:: \Big( E_s \Big[ \Big( \sum_{i \in c} W_{0,i} \, \partial f / \partial W_i
              \Big)^2 \Big] \Big)^{1/2}

    with *f* the objective and *s* the later half of the steps in which its block is pulled, when
    the rest has had time to make up. It is in the objective's own unit, so one threshold is fair
    to all blocks. The model itself is not changed.

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
        pull: How far a whole block is pulled while its channels are priced: 0, not at all, to 1,
            to zero.
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
    pull: float = 0.2
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        shares = self.removed.values() if isinstance(self.removed, Mapping) else [self.removed]
        if not shares or not all(0 < share < 1 for share in shares):
            raise InputError(f"`removed` must lie between 0 and 1. Found {short(self.removed)}.")
        if self.steps < 1:
            raise InputError(f"`steps` must be at least 1. Found {short(self.steps)}.")
        if self.distortion_weight < 0 or self.learning_rate <= 0:
            raise InputError(
                "`distortion_weight` must be at least 0 and `learning_rate` positive. Found "
                f"{self.distortion_weight} and {self.learning_rate}."
            )
        for name in ("rho", "pull"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(
                    f"`{name}` must lie between 0 and 1. Found {short(getattr(self, name))}."
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
        trained = deep_copy(model)
        run = _Run(self, index, trained, _blocks(groups, index, self.removed))
        with differentiable(trained):
            scores = index.split(GroupScores.blind(run.scores(evidence, batches)))
        return ChannelScores("crossprune", BLIND, scores, len(batches))


def _blocks(
    groups: CouplingGroups, index: ChannelIndex, removed: float | Mapping[str, float]
) -> list[tuple[Tensor, int]]:
    """Return the channels of each modality, then of the fusion, and how many are driven to zero.

    Args:
        groups: With labels.
        index: Their channels.
        removed: See :class:`CrossPruneImportance`.

    Raises:
        InputError: A name is that of no modality.
    """
    labels = {group.name: group.modality for group in groups}
    known = {FUSION, *(modality.name for modality in groups.modalities)}
    if isinstance(removed, Mapping) and not known.issuperset(removed):
        raise InputError(f"`removed` names {set(removed) - known}. Expected {known}.")
    blocks = []
    for label in sorted(set(labels.values()), key=lambda name: name == FUSION):
        parts = [part for name, part in index.slices.items() if labels[name] == label]
        channels = torch.cat([torch.arange(part.start, part.stop, device="cpu") for part in parts])
        share = removed.get(label, 0.0) if isinstance(removed, Mapping) else removed
        blocks.append((channels, int(share * len(channels))))
    return blocks


class _ChannelPull:
    r"""The variables of ADMM for pruning besides the model's own weights *W*.

    *Z* is *W + U* with some channels at zero, or closer to it, and the scaled multipliers *U* add
    up what is left of :math:`W - Z`.

    Args:
        index: All channels.
        model: The model that trains; its weights are referred to, not taken over.
        rho: Which part of the way to *Z - U* pulled entries go with every step, 0 to 1.

    Attributes:
        gone: Channels that are pulled to zero. Shape ``[C]``, bool.
    """

    def __init__(self, index: ChannelIndex, model: nn.Module, *, rho: float) -> None:
        self.index = index
        self.rho = rho
        self.weights = index.find(dict(model.named_parameters()))
        self.multipliers = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.gone = torch.zeros(index.n_channels, dtype=torch.bool, device="cpu")

    @torch.no_grad()
    def pull(self, shares: Tensor) -> None:
        """Move every channel's entries towards *Z - U*, in place.

        Apart from the optimizer's own step, whose length, with Adam, is the same for strong and
        weak channels.

        Args:
            shares: How much of a channel *Z* lacks: 1 for zero, 0 to leave it. Shape ``[C]``.
        """
        for name, apart in self._apart(shares).items():
            self.weights[name].sub_(self.rho * apart)

    @torch.no_grad()
    def remember(self) -> None:
        """Let *U* take up what is left of the channels that are gone."""
        self.multipliers = self._apart(self.gone.double())

    def _apart(self, shares: Tensor) -> dict[str, Tensor]:
        """Return *W - Z + U*, which is not zero only where entries are pulled."""
        # Positions without a channel carry -1: a spare last place, which stays.
        padded = torch.cat((shares, shares.new_zeros(1)))
        apart: dict[str, Tensor] = {}
        for name, axes in self.index.axes.items():
            weight = self.weights[name].detach()
            # An entry of two channels goes as far as the one that is pulled harder.
            share = torch.zeros_like(weight)
            for axis in axes:
                shape = [1] * weight.ndim
                shape[axis.dim] = -1
                share = torch.maximum(share, padded[axis.channel].to(weight).view(shape))
            apart[name] = share * (weight + self.multipliers[name])
        return apart


class _Run:
    """One run: the model in training, what is pulled, and the block whose turn it is."""

    def __init__(
        self,
        settings: CrossPruneImportance,
        index: ChannelIndex,
        model: nn.Module,
        blocks: Sequence[tuple[Tensor, int]],
    ) -> None:
        self.settings, self.model, self.blocks = settings, model, blocks
        self.channels = _ChannelPull(index, model, rho=settings.rho)

    def scores(self, evidence: Evidence, batches: Sequence[Any]) -> Tensor:
        """Give every block its turn.

        Returns:
            The price of each channel while its block was pulled. Shape ``[C]``.
        """
        channels = self.channels
        targets = [self._fused(evidence, batch) for batch in batches]
        initial = {name: weight.detach().clone() for name, weight in channels.weights.items()}
        prices = torch.zeros(channels.index.n_channels, dtype=torch.float64, device="cpu")
        optimizer = torch.optim.Adam(channels.weights.values(), lr=self.settings.learning_rate)
        done = 0
        for block, count in self.blocks:
            for is_priced in (True, False):
                shares = channels.gone.double()
                if is_priced:
                    shares[block] = shares[block].clamp_min(self.settings.pull)
                squares = []
                for _ in range(self.settings.steps):
                    number = done % len(batches)
                    with lent(batches[number]):
                        loss = self._objective(evidence, batches[number], targets[number])
                        gradients = self._step(optimizer, loss)
                    if is_priced:
                        products = {name: initial[name] * g for name, g in gradients.items()}
                        effects = channels.index.sums(products, torch.device("cpu"))
                        squares.append(effects.square())
                    channels.pull(shares)
                    done += 1
                    evidence.progress(done)
                if is_priced:
                    later = torch.stack(squares[self.settings.steps // 2 :])
                    prices[block] = later.mean(0).sqrt()[block]
                    weakest = block[prices[block].argsort(stable=True)[:count]]
                    channels.gone[weakest] = True
            channels.remember()
        return prices

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> dict[str, Tensor]:
        """Make a step; return the gradients by weight, where there are any."""
        weights = self.channels.weights
        gradients = torch.autograd.grad(loss, tuple(weights.values()), allow_unused=True)
        for weight, gradient in zip(weights.values(), gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        named = zip(weights, gradients, strict=True)
        return {name: gradient for name, gradient in named if gradient is not None}

    def _objective(self, evidence: Evidence, batch: Any, original: Tensor) -> Tensor:
        with _listening(self.model, self.settings.fused) as heard:
            loss = weighted_loss(self.model, batch, evidence, where="a calibration batch")
        restriction = self.settings.distortion_weight * distortion(_joined(heard), original)
        return restriction if loss is None else loss + restriction

    @torch.no_grad()
    def _fused(self, evidence: Evidence, batch: Any) -> Tensor:
        with lent(batch), _listening(self.model, self.settings.fused) as heard:
            run_forward(self.model, batch, evidence.forward, where="a calibration batch")
            return _joined(heard)


def distortion(fused: Tensor, original: Tensor) -> Tensor:
    r"""Return :math:`\|F - F_0\|^2 / \|F_0\|^2`; as a feature loss, CrossPrune's restriction.

    Args:
        fused: The fused feature now. Any shape.
        original: That of the unpruned model, of the same shape.
    """
    return (fused - original).square().sum() / original.square().sum().clamp_min(1e-12)


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
