"""Importance criteria: what each task would lose with a channel."""

from taskprune.calling.modality import Modality
from taskprune.coupling.modalities import modality_of_groups
from taskprune.importance.conflict import CosineConflict, EffectConflict
from taskprune.importance.conflict_report import ConflictReport, conflict_report
from taskprune.importance.criteria.altermoma import AlterMomaImportance, difference, discount
from taskprune.importance.criteria.bn_scale import BatchNormScaleImportance
from taskprune.importance.criteria.combined import CombinedImportance
from taskprune.importance.criteria.cosprune import CosPruneImportance
from taskprune.importance.criteria.crossprune import CrossPruneImportance, distortion
from taskprune.importance.criteria.crossprune_training import CrossPruneRegulariser
from taskprune.importance.criteria.disparse import DisparseImportance
from taskprune.importance.criteria.fisher import FisherImportance
from taskprune.importance.criteria.fpgm import FpgmImportance
from taskprune.importance.criteria.group_fisher import GroupFisherImportance
from taskprune.importance.criteria.isomorphic import IsomorphicImportance
from taskprune.importance.criteria.lamp import LampImportance
from taskprune.importance.criteria.magnitude import MagnitudeImportance
from taskprune.importance.criteria.obd import ObdImportance
from taskprune.importance.criteria.random import RandomImportance
from taskprune.importance.criteria.task_taylor import TaskTaylorImportance
from taskprune.importance.criteria.taylor import TaylorImportance
from taskprune.importance.criteria.taylor_gate import TaylorGateImportance
from taskprune.importance.criteria.torch_pruning_adapter import TorchPruningImportance
from taskprune.importance.criteria_by_name import importance_by_name, importance_names
from taskprune.importance.normalisation import (
    as_they_are,
    by_mean_loss,
    by_stake,
    by_tolerance,
)
from taskprune.importance.owners import output_owners
from taskprune.importance.scores import ChannelScores, Evidence, Importance
from taskprune.importance.scoring import score

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
