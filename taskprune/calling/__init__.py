"""How a batch reaches a model, what comes back, and what a task makes of it."""

from taskprune.calling.forward import Forward, call_batch, call_inputs
from taskprune.calling.outputs import flatten_outputs

__all__ = [
    "Forward",
    "call_batch",
    "call_inputs",
    "flatten_outputs",
]
