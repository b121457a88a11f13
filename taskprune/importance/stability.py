"""When calibration has seen enough: the channels that would go no longer change. Ours."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

SHARES = (0.3, 0.5)
"""Shares of the channels whose identity is compared: what a moderate and a hard budget remove."""


@dataclass(eq=False)
class RankingStability:
    """Compares the lowest channels now with those of a good while ago.

    Running averages move by ever smaller steps, so successive batches always look alike. The
    ranking is compared with that of 2/3 of the batches, twice in a row.

    Attributes:
        agreement: Share of the lowest channels that have to be the same.
        at_least: Batches before the first look.
        n_looks: How often scores were shown.
    """

    agreement: float = 0.95
    at_least: int = 4
    n_looks: int = 0
    _next: int = 0
    _before: Tensor | None = None
    _agreed: list[bool] = field(default_factory=list)

    def __call__(self, n_batches: int, scores: Tensor) -> bool:
        """Return whether the ranking is stable.

        Args:
            n_batches: Batches so far.
            scores: Total scores so far. Shape ``[C]``.
        """
        self.n_looks += 1
        if n_batches < max(self.at_least, self._next):
            return False
        ranks = scores.detach().cpu().argsort().argsort()
        if self._before is not None:
            self._agreed.append(self._overlap(ranks, self._before) >= self.agreement)
        self._before, self._next = ranks, -(-n_batches * 3 // 2)
        return self._agreed[-2:] == [True, True]

    def _overlap(self, ranks: Tensor, before: Tensor) -> float:
        """Return the smallest share of lowest channels in common."""
        overlaps = []
        for share in SHARES:
            n_lowest = max(1, round(share * len(ranks)))
            both = torch.logical_and(ranks < n_lowest, before < n_lowest).sum()
            overlaps.append(int(both) / n_lowest)
        return min(overlaps)
