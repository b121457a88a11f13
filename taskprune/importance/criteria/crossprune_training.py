"""CrossPrune while a model trains: whole channels go to zero within the distillation trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from taskprune.calling.modality import Modality
from taskprune.coupling.groups import CouplingGroups
from taskprune.coupling.modalities import for_criterion
from taskprune.errors import InputError
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.channel_pull import ChannelPull
from taskprune.importance.criteria.crossprune import check_removed, crossprune_blocks, weakest


@dataclass(frozen=True)
class CrossPruneRegulariser:
    r"""The sparsity of CrossPrune as a part of training, for ``DistillSettings(regularisers=)``.

    What :class:`~taskprune.importance.CrossPruneImportance` does for a few steps to see which
    channels are needless, over a whole training run: the modalities take turns, then the fusion. In
    the first half of a turn all channels of the block are held at half of their strength; those
    that fall below it most easily, relative to where they began, are pulled to zero from then on,
    and the rest recovers. The last part of the run is left to let all settle. Pruning the trained
    model by magnitude then takes out what is zero already.

    The run itself gives the rest of CrossPrune's problem: the tasks' losses, and the restriction of
    the distortion of the fused feature, if the teacher is a frozen copy of the model and the fused
    feature its only tap::

        settings = DistillSettings(
            steps=2000,
            feature_loss=distortion,  # from taskprune.importance
            regularisers=(CrossPruneRegulariser(groups, removed={"camera": 0.5}),),
        )
        distill(model, copy.deepcopy(model), taps=["fusion"], settings=settings, ...)

    Which part is published and which is our reconstruction is said there.

    Attributes:
        groups: Of the model that trains.
        removed: Fraction of the channels of each modality, and of the fusion, driven to zero; or
            ``{modality or "fusion": fraction}``, where names left out keep all.
        modalities: At least two. Default: those that the groups are labelled with, or else those
            found from the model's inputs, see :func:`taskprune.coupling.labelled`.
        rho: Which part of the way pulled entries go with every step, 0 to 1.
    """

    groups: CouplingGroups = field(repr=False)
    removed: float | Mapping[str, float] = 0.5
    modalities: tuple[Modality, ...] | None = None
    rho: float = 0.1

    def __post_init__(self) -> None:
        check_removed(self.removed)
        if not 0 < self.rho < 1:
            raise InputError(f"`rho` must lie between 0 and 1. Found {self.rho!r}.")

    def for_student(self, student: nn.Module, n_steps: int) -> CrossPruneTurns:
        """Return what acts on one student in one run.

        Raises:
            InputError: The model lacks a modality, has modules that pruning would replace, or the
                run is too short to give every block its turn.
            PlanMismatchError: The groups were made for another model.
        """
        if self.groups.replacements:
            path = self.groups.replacements[0].path
            raise InputError(
                f"The groups are those of the model with `{path}` replaced, which cannot shrink as "
                "it is written. Train the replaced model: `apply_plan` with a plan that drops "
                "nothing makes it."
            )
        groups = for_criterion(self.groups, self.modalities)
        index = ChannelIndex(groups)
        blocks = [b for b in crossprune_blocks(groups, index, self.removed) if b[1] > 0]
        if not blocks:
            raise InputError(
                f"`removed={self.removed!r}` is less than one channel of every modality."
            )
        if n_steps < 2 * (len(blocks) + 1):
            raise InputError(
                f"{len(blocks)} blocks of channels take turns, of which each needs more than "
                f"{n_steps} steps have room for. Train for longer."
            )
        return CrossPruneTurns(ChannelPull(index, student, rho=self.rho), blocks, n_steps)


class CrossPruneTurns(nn.Module):
    """The turns of one run.

    Args:
        channels: The student's channels.
        blocks: Channels, and how many of them are to go.
        n_steps: Length of the run.
    """

    start: Tensor

    def __init__(
        self, channels: ChannelPull, blocks: Sequence[tuple[Tensor, int]], n_steps: int
    ) -> None:
        super().__init__()
        self.channels = channels
        self.blocks = tuple(blocks)
        # Half a turn; as long as a turn is what follows the last.
        self.length = n_steps // (2 * (len(blocks) + 1))
        self.register_buffer("start", channels.strength().float().clamp_min(1e-30))

    def after_step(self, step: int) -> None:
        """Pull what has to go, and choose at the end of each first half what that is."""
        turn, second_half = divmod((step - 1) // self.length, 2)
        shares = self.channels.gone.double().cpu()
        is_last = step % self.length == 0
        if turn < len(self.blocks) and not second_half:
            block, count = self.blocks[turn]
            start = self.start.double().cpu()
            strength = self.channels.strength()
            above = 1 - 0.5 * start[block] / strength[block].clamp_min(1e-30)
            shares[block] = torch.maximum(shares[block], above.clamp_min(0.0))
            self.channels.pull(shares)
            if is_last:
                left = self.channels.strength() / start
                self.channels.gone[weakest(left, block, count).to(self.start.device)] = True
            return
        self.channels.pull(shares)
        if is_last:
            self.channels.remember()
