"""The stage ``solve``: choose the channels that go, so that the budget is met."""

from taskprune.solver.solving import solve

__all__ = ["solve"]
