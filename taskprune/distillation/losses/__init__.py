"""Losses, a file per method: of aligned features, and of outputs where a task wants them."""

from taskprune.distillation.losses.attention_transfer import attention_transfer
from taskprune.distillation.losses.cosine import cosine
from taskprune.distillation.losses.cwd import cwd
from taskprune.distillation.losses.feature_layout import (
    FeatureLoss,
    FittedFeatureLoss,
    channel_free,
)
from taskprune.distillation.losses.mgd import MGD
from taskprune.distillation.losses.mse import mse
from taskprune.distillation.losses.ofd import ofd
from taskprune.distillation.losses.output_logits import logit_kl
from taskprune.distillation.losses.output_pair import OnOutputs
from taskprune.distillation.losses.pkd import pkd
from taskprune.distillation.losses.query_matching import query_matching

__all__ = [
    "MGD",
    "FeatureLoss",
    "FittedFeatureLoss",
    "OnOutputs",
    "attention_transfer",
    "channel_free",
    "cosine",
    "cwd",
    "logit_kl",
    "mse",
    "ofd",
    "pkd",
    "query_matching",
]
