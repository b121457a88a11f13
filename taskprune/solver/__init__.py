"""The stage ``solve``: choose the channels that go, so that the budget is met."""

from taskprune.solver.solving import DEFAULT_SAFETY, solve

__all__ = ["DEFAULT_SAFETY", "solve"]
