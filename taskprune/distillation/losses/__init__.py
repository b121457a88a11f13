"""Feature losses: pure functions of ``(student, teacher)`` features, a file per method."""

from taskprune.distillation.losses.attention_transfer import attention_transfer
from taskprune.distillation.losses.cosine import cosine
from taskprune.distillation.losses.cwd import cwd
from taskprune.distillation.losses.layout import FeatureLoss, channel_free
from taskprune.distillation.losses.mse import mse
from taskprune.distillation.losses.pkd import pkd

__all__ = ["FeatureLoss", "attention_transfer", "channel_free", "cosine", "cwd", "mse", "pkd"]
