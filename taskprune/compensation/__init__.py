"""Compensation: the channels that stay say what the removed ones said."""

from taskprune.compensation.compensating import CompensationSettings, compensate
from taskprune.compensation.result import CompensationResult, ReaderReport

__all__ = ["CompensationResult", "CompensationSettings", "ReaderReport", "compensate"]
