"""taskprune: make multi-task PyTorch models smaller and faster without any task paying for it.

``prune`` is the front door. ``trace``, ``couple``, ``score``, ``solve`` and ``apply_plan`` are its
five stages; ``distill`` trains the result against its teacher.

A name is imported when it is first used, so that ``import taskprune`` costs next to nothing.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from taskprune.errors import TaskPruneError
from taskprune.version import __version__

if TYPE_CHECKING:
    from taskprune.calling.modality import Modality
    from taskprune.calling.task import Metric, Task
    from taskprune.compensation import CompensationResult, CompensationSettings, compensate
    from taskprune.coupling import (
        CouplingGroup,
        CouplingGroups,
        RuleContext,
        channel_rule,
        couple,
    )
    from taskprune.deployment.export_record import ExportResult
    from taskprune.deployment.exporting import export
    from taskprune.deployment.latency import latency_cost
    from taskprune.distillation import DistillSettings
    from taskprune.front.compression import CompressionPoint, CompressionResult, compress
    from taskprune.front.curve import frontier
    from taskprune.front.distilling import distill
    from taskprune.front.frontier_record import Frontier, FrontierPoint, Picked
    from taskprune.front.prune_settings import PruneSettings
    from taskprune.front.pruning import prune
    from taskprune.front.result import PruneResult
    from taskprune.front.task_removal import DropTaskResult, drop_task
    from taskprune.graph import ModelGraph, trace
    from taskprune.importance import ChannelScores, Evidence, Importance, score
    from taskprune.plan.plan import PruningPlan
    from taskprune.rewrite import apply_plan
    from taskprune.rewrite.checkpoint import load_checkpoint, save_checkpoint
    from taskprune.solver import solve
    from taskprune.solver.budget import Budget
    from taskprune.solver.safety import Safety

__all__ = [
    "Budget",
    "ChannelScores",
    "CompensationResult",
    "CompensationSettings",
    "CompressionPoint",
    "CompressionResult",
    "CouplingGroup",
    "CouplingGroups",
    "DistillSettings",
    "DropTaskResult",
    "Evidence",
    "ExportResult",
    "Frontier",
    "FrontierPoint",
    "Importance",
    "Metric",
    "Modality",
    "ModelGraph",
    "Picked",
    "PruneResult",
    "PruneSettings",
    "PruningPlan",
    "RuleContext",
    "Safety",
    "Task",
    "TaskPruneError",
    "__version__",
    "apply_plan",
    "channel_rule",
    "compensate",
    "compress",
    "couple",
    "distill",
    "drop_task",
    "export",
    "frontier",
    "latency_cost",
    "load_checkpoint",
    "prune",
    "save_checkpoint",
    "score",
    "solve",
    "trace",
]

_HOMES = {
    "calling.modality": ("Modality",),
    "calling.task": ("Metric", "Task"),
    "compensation": ("CompensationResult", "CompensationSettings", "compensate"),
    "coupling": ("CouplingGroup", "CouplingGroups", "RuleContext", "channel_rule", "couple"),
    "deployment.export_record": ("ExportResult",),
    "deployment.exporting": ("export",),
    "deployment.latency": ("latency_cost",),
    "distillation": ("DistillSettings",),
    "front.compression": ("CompressionPoint", "CompressionResult", "compress"),
    "front.curve": ("frontier",),
    "front.distilling": ("distill",),
    "front.frontier_record": ("Frontier", "FrontierPoint", "Picked"),
    "front.prune_settings": ("PruneSettings",),
    "front.pruning": ("prune",),
    "front.result": ("PruneResult",),
    "front.task_removal": ("DropTaskResult", "drop_task"),
    "graph": ("ModelGraph", "trace"),
    "importance": ("ChannelScores", "Evidence", "Importance", "score"),
    "plan.plan": ("PruningPlan",),
    "rewrite": ("apply_plan",),
    "rewrite.checkpoint": ("load_checkpoint", "save_checkpoint"),
    "solver": ("solve",),
    "solver.budget": ("Budget",),
    "solver.safety": ("Safety",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # which would take any name for one that exists

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            found = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        elif find_spec(f"{__name__}.{name}"):
            found = import_module(f"{__name__}.{name}")  # a room, as in `taskprune.importance`
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found  # so that this is asked once
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
