"""Compensation: the channels that stay say what the removed ones said."""

from taskprune.compensation.compensated import CompensationResult, LossReport, ReaderReport
from taskprune.compensation.compensating import compensate, compensate_surveyed
from taskprune.compensation.compensation_settings import CompensationSettings
from taskprune.compensation.survey import Survey

__all__ = [
    "CompensationResult",
    "CompensationSettings",
    "LossReport",
    "ReaderReport",
    "Survey",
    "compensate",
    "compensate_surveyed",
]
