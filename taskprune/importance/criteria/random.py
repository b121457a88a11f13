"""A random order: the baseline every criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.scores import ChannelScores, Evidence


@dataclass(frozen=True)
class RandomImportance:
    """Uniform random scores.

    Attributes:
        seed: Same seed and groups, same scores; torch's global generator is not touched.
    """

    seed: int = 0

    def __call__(
        self, _model: nn.Module, groups: CouplingGroups, _evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel; neither the model nor the evidence is looked at."""
        generator = torch.Generator().manual_seed(self.seed)
        total = {
            group.name: torch.rand(group.n_channels, generator=generator, dtype=torch.float64)
            for group in groups
        }
        return ChannelScores.of_all_tasks("random", total)
