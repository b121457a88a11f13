"""What the solver asks of a cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from taskprune.coupling.groups import IntArray


class Cost(Protocol):
    """A cost as a function of how many channels each group keeps, in whole units."""

    def value(self, kept: Mapping[str, int] | IntArray | None = None) -> int:
        """Return the cost; ``None`` stands for all channels."""

    def marginals(self, kept: Mapping[str, int] | IntArray | None = None) -> IntArray:
        """Return what dropping one more channel of each group saves. Shape ``[n_groups]``."""
