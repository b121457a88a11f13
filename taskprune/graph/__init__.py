"""Record what a model computes: operators, sizes with their origins, outputs of tasks."""

from taskprune.calling.outputs import flatten_outputs
from taskprune.graph.reach import tasks_reached
from taskprune.graph.records import ModelGraph
from taskprune.graph.tracing import trace
from taskprune.restore.modes import set_mode_without_updates

__all__ = ["ModelGraph", "flatten_outputs", "set_mode_without_updates", "tasks_reached", "trace"]
