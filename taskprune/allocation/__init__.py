"""How much of each group may go: predictions of scores, corrected by what was measured."""

from taskprune.allocation.measured_damage import MeasuredDamage

__all__ = ["MeasuredDamage"]
