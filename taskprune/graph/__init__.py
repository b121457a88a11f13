"""Record what a model computes: operators, sizes with their origins, outputs of tasks."""

from taskprune.graph.reach import tasks_reached
from taskprune.graph.records import ModelGraph
from taskprune.graph.tracing import trace

__all__ = ["ModelGraph", "tasks_reached", "trace"]
