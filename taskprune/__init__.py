"""taskprune: make multi-task PyTorch models smaller and faster without any task paying for it.

``prune`` is the front door. ``trace``, ``couple``, ``score``, ``solve`` and ``apply_plan`` are its
five stages; ``distill`` trains the result against its teacher.
"""

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
from taskprune.deployment.latency import latency_cost
from taskprune.distillation import DistillSettings
from taskprune.errors import TaskPruneError
from taskprune.front.compression import CompressionPoint, CompressionResult, compress
from taskprune.front.distilling import distill
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
from taskprune.version import __version__

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
    "Importance",
    "Metric",
    "Modality",
    "ModelGraph",
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
    "latency_cost",
    "load_checkpoint",
    "prune",
    "save_checkpoint",
    "score",
    "solve",
    "trace",
]
