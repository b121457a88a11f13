"""Importance criteria: what each task would lose with a channel."""

from taskprune.importance.conflict import CosineConflict, EffectConflict
from taskprune.importance.cosprune import CosPruneImportance
from taskprune.importance.magnitude import MagnitudeImportance
from taskprune.importance.owners import output_owners
from taskprune.importance.random import RandomImportance
from taskprune.importance.registry import importance_by_name, importance_names
from taskprune.importance.scores import ChannelScores, Evidence, Importance
from taskprune.importance.scoring import score
from taskprune.importance.task_taylor import TaskTaylorImportance, as_they_are, by_mean_loss
from taskprune.importance.taylor import TaylorImportance
from taskprune.importance.torch_pruning_adapter import TorchPruningImportance

__all__ = [
    "ChannelScores",
    "CosPruneImportance",
    "CosineConflict",
    "EffectConflict",
    "Evidence",
    "Importance",
    "MagnitudeImportance",
    "RandomImportance",
    "TaskTaylorImportance",
    "TaylorImportance",
    "TorchPruningImportance",
    "as_they_are",
    "by_mean_loss",
    "importance_by_name",
    "importance_names",
    "output_owners",
    "score",
]
