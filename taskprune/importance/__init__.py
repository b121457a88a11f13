"""Importance criteria: what each task would lose with a channel."""

from taskprune.coupling.modalities import modality_of_groups
from taskprune.importance.altermoma import AlterMomaImportance, difference, discount
from taskprune.importance.bn_scale import BatchNormScaleImportance
from taskprune.importance.combined import CombinedImportance
from taskprune.importance.conflict import CosineConflict, EffectConflict
from taskprune.importance.conflict_report import ConflictReport, conflict_report
from taskprune.importance.cosprune import CosPruneImportance
from taskprune.importance.crossprune import CrossPruneImportance, distortion
from taskprune.importance.crossprune_training import CrossPruneRegulariser
from taskprune.importance.disparse import DisparseImportance
from taskprune.importance.fisher import FisherImportance
from taskprune.importance.fpgm import FpgmImportance
from taskprune.importance.group_fisher import GroupFisherImportance
from taskprune.importance.isomorphic import IsomorphicImportance
from taskprune.importance.lamp import LampImportance
from taskprune.importance.magnitude import MagnitudeImportance
from taskprune.importance.normalisation import (
    as_they_are,
    by_mean_loss,
    by_stake,
    by_tolerance,
)
from taskprune.importance.obd import ObdImportance
from taskprune.importance.owners import output_owners
from taskprune.importance.random import RandomImportance
from taskprune.importance.registry import importance_by_name, importance_names
from taskprune.importance.scores import ChannelScores, Evidence, Importance
from taskprune.importance.scoring import score
from taskprune.importance.task_taylor import TaskTaylorImportance
from taskprune.importance.taylor import TaylorImportance
from taskprune.importance.taylor_gate import TaylorGateImportance
from taskprune.importance.torch_pruning_adapter import TorchPruningImportance
from taskprune.modality import Modality

__all__ = [
    "AlterMomaImportance",
    "BatchNormScaleImportance",
    "ChannelScores",
    "CombinedImportance",
    "ConflictReport",
    "CosPruneImportance",
    "CosineConflict",
    "CrossPruneImportance",
    "CrossPruneRegulariser",
    "DisparseImportance",
    "EffectConflict",
    "Evidence",
    "FisherImportance",
    "FpgmImportance",
    "GroupFisherImportance",
    "Importance",
    "IsomorphicImportance",
    "LampImportance",
    "MagnitudeImportance",
    "Modality",
    "ObdImportance",
    "RandomImportance",
    "TaskTaylorImportance",
    "TaylorGateImportance",
    "TaylorImportance",
    "TorchPruningImportance",
    "as_they_are",
    "by_mean_loss",
    "by_stake",
    "by_tolerance",
    "conflict_report",
    "difference",
    "discount",
    "distortion",
    "importance_by_name",
    "importance_names",
    "modality_of_groups",
    "output_owners",
    "score",
]
