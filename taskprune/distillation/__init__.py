"""Distillation: train a student on its tasks and on its frozen teacher's features.

Knows nothing of pruning but an optional map from student channels to teacher channels.
"""

from taskprune.distillation.alignment import Alignment, make_adapter, make_alignment
from taskprune.distillation.batchnorm import recalibrate_batchnorm
from taskprune.distillation.default_taps import default_taps
from taskprune.distillation.early_stopping import EarlyStopping
from taskprune.distillation.gradnorm import GradNorm
from taskprune.distillation.history import Callback, StepRecord
from taskprune.distillation.losses import (
    MGD,
    FeatureLoss,
    FittedFeatureLoss,
    OnOutputs,
    attention_transfer,
    channel_free,
    cosine,
    cwd,
    logit_kl,
    mse,
    ofd,
    pkd,
    query_matching,
)
from taskprune.distillation.one_cycle import OneCycle
from taskprune.distillation.regularisation import Regulariser, StudentRegulariser
from taskprune.distillation.roles import Role, declared_roles
from taskprune.distillation.settings import DistillSettings, OutputLoss
from taskprune.distillation.taps import (
    FeatureRecorder,
    Tap,
    TapSelector,
    resolve_taps,
    tapped,
)
from taskprune.distillation.tensorboard_log import TensorBoardLog
from taskprune.distillation.trainer import DistillResult, distill
from taskprune.distillation.uncertainty_weights import UncertaintyWeights
from taskprune.distillation.validation import Validation, measure
from taskprune.distillation.weight_schedule import Ramp, Schedule
from taskprune.distillation.weighting import Weighting

__all__ = [
    "MGD",
    "Alignment",
    "Callback",
    "DistillResult",
    "DistillSettings",
    "EarlyStopping",
    "FeatureLoss",
    "FeatureRecorder",
    "FittedFeatureLoss",
    "GradNorm",
    "OnOutputs",
    "OneCycle",
    "OutputLoss",
    "Ramp",
    "Regulariser",
    "Role",
    "Schedule",
    "StepRecord",
    "StudentRegulariser",
    "Tap",
    "TapSelector",
    "TensorBoardLog",
    "UncertaintyWeights",
    "Validation",
    "Weighting",
    "attention_transfer",
    "channel_free",
    "cosine",
    "cwd",
    "declared_roles",
    "default_taps",
    "distill",
    "logit_kl",
    "make_adapter",
    "make_alignment",
    "measure",
    "mse",
    "ofd",
    "pkd",
    "query_matching",
    "recalibrate_batchnorm",
    "resolve_taps",
    "tapped",
]
