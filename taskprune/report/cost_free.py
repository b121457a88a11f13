"""What of a model costs nothing, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from taskprune.cost import count_macs, count_params
from taskprune.coupling.groups import CouplingGroups


@dataclass(frozen=True, slots=True)
class FreeReport:
    """Channels that say nothing but what others say, and what they cost.

    Attributes:
        channels: How many of each group can go without any output noticing; groups without any
            are left out.
        dropped: How many of these go.
        of: How many prunable channels there are.
        params: Fraction of the parameters that goes with all of them.
        macs: The same of the multiply-adds.
    """

    channels: Mapping[str, int]
    dropped: int
    of: int
    params: float
    macs: float

    @classmethod
    def of_counts(
        cls, groups: CouplingGroups, channels: Mapping[str, int], dropped: int
    ) -> FreeReport:
        """Make it of the numbers of channels."""
        kept = {group.name: group.n_channels - channels.get(group.name, 0) for group in groups}
        saved = [
            1 - count(groups, kept) / max(1, count(groups)) for count in (count_params, count_macs)
        ]
        return cls(channels, dropped, sum(groups.full_counts().values()), *saved)

    def __str__(self) -> str:
        n_free = sum(self.channels.values())
        if not n_free:
            return f"None of {self.of:,} channels is dead, constant or linear in others"
        return (
            f"{self.macs:.1%} of the multiply-adds and {self.params:.1%} of the parameters cost "
            f"nothing: {n_free:,} of {self.of:,} channels are dead, constant or linear in others, "
            f"and {self.dropped:,} of these go"
        )
