"""How a batch reaches a model, what comes back, and what a task makes of it."""

from taskprune.calling.forward import Forward, Forwards, call_batch, call_inputs
from taskprune.calling.modality import Modality
from taskprune.calling.outputs import flatten_outputs
from taskprune.calling.task import Metric, Task

__all__ = [
    "Forward",
    "Forwards",
    "Metric",
    "Modality",
    "Task",
    "call_batch",
    "call_inputs",
    "flatten_outputs",
]
