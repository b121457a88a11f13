"""Carrying out a plan: tensors, stored sizes, optimizer state, and the proof that it is right."""

from taskprune.rewrite.apply import apply_and_verify, apply_plan
from taskprune.rewrite.carrying_over import carry_over
from taskprune.rewrite.comparison import OutputError
from taskprune.rewrite.optimizer import remap_optimizer
from taskprune.rewrite.verification_report import ExcludedGroup, VerificationReport

__all__ = [
    "ExcludedGroup",
    "OutputError",
    "VerificationReport",
    "apply_and_verify",
    "apply_plan",
    "carry_over",
    "remap_optimizer",
]
