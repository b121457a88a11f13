"""The stage ``solve``: choose the channels that go, so that the budget is met."""

from taskprune.solver.solving import DEFAULT_POWER, DEFAULT_SAFETY, CostPower, solve

__all__ = ["DEFAULT_POWER", "DEFAULT_SAFETY", "CostPower", "solve"]
