"""Compensation: the channels that stay say what the removed ones said."""

from taskprune.compensation.compensated import CompensationResult, ReaderReport
from taskprune.compensation.compensating import compensate
from taskprune.compensation.compensation_settings import CompensationSettings

__all__ = ["CompensationResult", "CompensationSettings", "ReaderReport", "compensate"]
