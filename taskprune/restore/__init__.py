"""What is borrowed from a model or the process and given back, also after an exception."""

from taskprune.restore.denormals import flushed_denormals
from taskprune.restore.modes import evaluating
from taskprune.restore.rng import preserved_rng

__all__ = ["evaluating", "flushed_denormals", "preserved_rng"]
