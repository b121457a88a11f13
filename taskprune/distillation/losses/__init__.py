"""Losses, a file per method: of aligned features, and of outputs where a task wants them."""

from taskprune.distillation.losses.feature_layout import FeatureLoss
from taskprune.distillation.losses.mse import mse
from taskprune.distillation.losses.output_logits import logit_kl
from taskprune.distillation.losses.output_pair import OnOutputs
from taskprune.distillation.losses.pkd import pkd
from taskprune.distillation.losses.query_matching import query_matching

__all__ = ["FeatureLoss", "OnOutputs", "logit_kl", "mse", "pkd", "query_matching"]
