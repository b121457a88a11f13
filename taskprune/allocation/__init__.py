"""How much of each group may go: what costs nothing, and scores corrected by what was measured."""

from taskprune.allocation.finding_free import find_free
from taskprune.allocation.free_channels import FreeChannels
from taskprune.allocation.measured_damage import MeasuredDamage

__all__ = ["FreeChannels", "MeasuredDamage", "find_free"]
