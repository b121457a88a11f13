"""Moving average of a net's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


class MovingAverage(Generic[Net]):
    """A copy of the net that follows it: ``a <- d a + (1 - d) w`` for weights and statistics.

    ``d = min(decay, (1 + n) / (10 + n))`` after ``n`` updates: the random start is soon forgotten.

    Attributes:
        net: The averaged net, in eval mode.
        updates: How many times `update` ran.
    """

    def __init__(self, net: Net, *, decay: float) -> None:
        self.net = copy.deepcopy(net).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move towards the net's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = net.state_dict()
        for name, value in self.net.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], 1 - decay)
            else:
                value.copy_(current[name])
        self.updates += 1
