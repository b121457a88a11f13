"""Distillation: train a student on its tasks and on its frozen teacher's features.

Knows nothing of pruning but an optional map from student channels to teacher channels.
"""

from taskprune.distillation.default_taps import default_taps
from taskprune.distillation.history import Callback, StepRecord
from taskprune.distillation.kept_weights import WeightAverage
from taskprune.distillation.losses import (
    FeatureLoss,
    OnOutputs,
    logit_kl,
    mse,
    pkd,
    query_matching,
)
from taskprune.distillation.recording import FeatureRecorder, tapped
from taskprune.distillation.settings import DistillSettings, OutputLoss, Schedule
from taskprune.distillation.taps import Role, Tap, TapSelector, declared_roles, resolve_taps
from taskprune.distillation.trainer import DistillResult, distill
from taskprune.distillation.validation import Validation, measure

__all__ = [
    "Callback",
    "DistillResult",
    "DistillSettings",
    "FeatureLoss",
    "FeatureRecorder",
    "OnOutputs",
    "OutputLoss",
    "Role",
    "Schedule",
    "StepRecord",
    "Tap",
    "TapSelector",
    "Validation",
    "WeightAverage",
    "declared_roles",
    "default_taps",
    "distill",
    "logit_kl",
    "measure",
    "mse",
    "pkd",
    "query_matching",
    "resolve_taps",
    "tapped",
]
