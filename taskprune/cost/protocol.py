"""What the solver asks of a cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from taskprune.coupling.groups import IntArray


class CostAccount(Protocol):
    """A cost at the current counts, kept up to date while they change group by group."""

    @property
    def total(self) -> int:
        """The cost."""

    @property
    def marginals(self) -> IntArray:
        """What dropping one more channel of each group saves. Shape ``[n_groups]``."""

    def saving(self, group: int, n_channels: int) -> int:
        """Return what dropping ``n_channels`` more channels of one group saves; may be negative."""

    def update(self, group: int, count: int) -> None:
        """Set how many channels one group keeps."""


class Cost(Protocol):
    """A cost as a function of how many channels each group keeps, in whole units."""

    def value(self, kept: Mapping[str, int] | IntArray | None = None) -> int:
        """Return the cost; ``None`` stands for all channels."""

    def marginals(self, kept: Mapping[str, int] | IntArray | None = None) -> IntArray:
        """Return what dropping one more channel of each group saves. Shape ``[n_groups]``."""

    def at(self, kept: Mapping[str, int] | IntArray | None = None) -> CostAccount:
        """Return a running account that starts from these counts."""
