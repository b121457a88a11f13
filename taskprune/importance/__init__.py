"""Importance criteria: what each task would lose with a channel."""

from typing import TYPE_CHECKING, Any

from taskprune.calling.modality import Modality
from taskprune.coupling.modalities import modality_of_groups
from taskprune.importance.conflict import CosineConflict, EffectConflict
from taskprune.importance.conflict_report import ConflictReport, conflict_report
from taskprune.importance.criteria.altermoma import AlterMomaImportance, difference, discount
from taskprune.importance.criteria.cosprune import CosPruneImportance
from taskprune.importance.criteria.crossprune import CrossPruneImportance, distortion
from taskprune.importance.criteria.magnitude import MagnitudeImportance
from taskprune.importance.criteria.output_change import OutputChangeImportance
from taskprune.importance.criteria.random import RandomImportance
from taskprune.importance.criteria.task_change import TaskChangeImportance
from taskprune.importance.criteria.task_taylor import TaskTaylorImportance
from taskprune.importance.criteria.taylor import TaylorImportance
from taskprune.importance.criteria_by_name import importance_by_name, importance_names
from taskprune.importance.normalisation import as_they_are, by_mean_loss, by_stake
from taskprune.importance.owners import output_owners
from taskprune.importance.projections import output_tasks
from taskprune.importance.scores import ChannelScores, Evidence, GroupScores, Importance
from taskprune.importance.scoring import score

if TYPE_CHECKING:
    from taskprune.importance.criteria.torch_pruning_adapter import TorchPruningImportance

__all__ = [
    "AlterMomaImportance",
    "ChannelScores",
    "ConflictReport",
    "CosPruneImportance",
    "CosineConflict",
    "CrossPruneImportance",
    "EffectConflict",
    "Evidence",
    "GroupScores",
    "Importance",
    "MagnitudeImportance",
    "Modality",
    "OutputChangeImportance",
    "RandomImportance",
    "TaskChangeImportance",
    "TaskTaylorImportance",
    "TaylorImportance",
    "TorchPruningImportance",
    "as_they_are",
    "by_mean_loss",
    "by_stake",
    "conflict_report",
    "difference",
    "discount",
    "distortion",
    "importance_by_name",
    "importance_names",
    "modality_of_groups",
    "output_owners",
    "output_tasks",
    "score",
]


def __getattr__(name: str) -> Any:
    if name == "TorchPruningImportance":  # the only one that needs Torch-Pruning
        from taskprune.importance.criteria.torch_pruning_adapter import TorchPruningImportance

        return TorchPruningImportance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
