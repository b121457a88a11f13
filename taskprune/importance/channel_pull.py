"""Pulls the entries of whole coupled channels towards zero while a model trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taskprune.importance.channel_index import ChannelIndex


class ChannelPull(nn.Module):
    r"""The variables of ADMM for pruning besides the model's own weights *W*.

    *Z* is *W + U* with some channels at zero, or closer to it, and the scaled multipliers *U* add
    up what is left of :math:`W - Z`. What has to survive a restart is in buffers.

    Args:
        index: All channels.
        model: The model that trains; its weights are referred to, not taken over.
        rho: Which part of the way to *Z - U* pulled entries go with every step, 0 to 1.

    Attributes:
        gone: Channels that are pulled to zero. Shape ``[C]``, bool.
    """

    gone: Tensor

    def __init__(self, index: ChannelIndex, model: nn.Module, *, rho: float) -> None:
        super().__init__()
        self.index = index
        self.rho = rho
        self.weights = index.find(dict(model.named_parameters()))
        self.register_buffer("gone", torch.zeros(index.n_channels, dtype=torch.bool))
        for number, weight in enumerate(self.weights.values()):
            self.register_buffer(f"multiplier_{number}", torch.zeros_like(weight))
        ones = {name: torch.ones_like(weight) for name, weight in self.weights.items()}
        self._n_entries = index.sums(ones, torch.device("cpu")).clamp_min(1)

    @torch.no_grad()
    def strength(self) -> Tensor:
        """Return the root mean square of each channel's entries. Shape ``[C]``, float64, CPU."""
        squares = {name: weight.detach().square() for name, weight in self.weights.items()}
        return (self.index.sums(squares, torch.device("cpu")) / self._n_entries).sqrt()

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
        apart = self._apart(self.gone.double())
        for number, name in enumerate(self.weights):
            self.get_buffer(f"multiplier_{number}").copy_(apart[name])

    def _apart(self, shares: Tensor) -> dict[str, Tensor]:
        """Return *W - Z + U*, which is not zero only where entries are pulled."""
        # Positions without a channel carry -1: a spare last place, which stays.
        padded = torch.cat((shares, shares.new_zeros(1)))
        apart: dict[str, Tensor] = {}
        for number, (name, axes) in enumerate(self.index.axes.items()):
            weight = self.weights[name].detach()
            # An entry of two channels goes as far as the one that is pulled harder.
            share = torch.zeros_like(weight)
            for axis in axes:
                along = padded[axis.channel.to(padded.device)].to(weight)
                shape = [1] * weight.ndim
                shape[axis.dim] = -1
                share = torch.maximum(share, along.view(shape))
            apart[name] = share * (weight + self.get_buffer(f"multiplier_{number}"))
        return apart
