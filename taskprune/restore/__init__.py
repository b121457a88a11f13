"""What is borrowed from a model or the process and given back, also after an exception."""

from taskprune.restore.modes import evaluating
from taskprune.restore.process import flushed_denormals, preserved_rng

__all__ = ["evaluating", "flushed_denormals", "preserved_rng"]
