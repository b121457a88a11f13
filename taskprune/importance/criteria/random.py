"""A random order: the baseline every criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.criteria_by_name import criterion
from taskprune.importance.scores import BLIND, ChannelScores, Evidence, GroupScores


@criterion
@dataclass(frozen=True)
class RandomImportance:
    """Uniform random scores.

    Attributes:
        seed: Same seed and groups, same scores; torch's global generator is not touched.
    """

    needs_values: ClassVar[bool] = False

    seed: int = 0

    def __call__(
        self, _model: nn.Module, groups: CouplingGroups, _evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel; neither the model nor the evidence is looked at."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = {
            group.name: torch.rand(
                group.n_channels, generator=generator, dtype=torch.float64, device="cpu"
            )
            for group in groups
        }
        own = {name: GroupScores.blind(total) for name, total in drawn.items()}
        return ChannelScores("random", BLIND, own)
