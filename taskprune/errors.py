"""Every error that taskprune raises on purpose.

Each message says what was expected, what was found, where, and what to do about it. Errors that
stem from a bad argument are also ``ValueError``, so that generic handlers keep working.
"""

from __future__ import annotations

import reprlib
from typing import Any


class TaskPruneError(Exception):
    """Base class of all errors raised by taskprune."""


class InputError(TaskPruneError, ValueError):
    """An argument does not fit: wrong type, out of range, inconsistent with another."""


class TraceError(TaskPruneError):
    """The model could not be run on the example inputs, so there is no graph."""


class UnsupportedOperatorError(TaskPruneError):
    """Strict mode met an operator that has no channel rule."""


class CouplingError(TaskPruneError):
    """The channel couplings of a graph contradict each other."""


class LossError(TaskPruneError):
    """A task's loss is not a finite scalar attached to the model."""


class InfeasibleBudgetError(TaskPruneError):
    """No choice of channels meets the budget; the message says the reachable extreme."""


class ToleranceError(TaskPruneError):
    """No model keeps every task within its tolerance, or none can be promised to; says why."""


class PlanMismatchError(TaskPruneError):
    """A plan was made for another model than the one it is applied to."""


class VerificationError(TaskPruneError):
    """The rewritten model does not behave like the masked original; nothing was changed."""


class CheckpointError(TaskPruneError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class ExportError(TaskPruneError):
    """A model could not be exported, or the file computes something else; no file was written."""


class DataError(TaskPruneError):
    """A data root, image or label file is missing or damaged; the message names the file."""


class TrainingError(TaskPruneError):
    """Training or distillation cannot go on, for example because a loss became NaN."""


class MissingDependencyError(TaskPruneError, ImportError):
    """An optional dependency is needed; the message names the extra that installs it."""


class AbsentValueError(TaskPruneError):
    """A model without one of its tasks needed a value that only that task computed."""


class _Short(reprlib.Repr):
    """Shows of tensors and modules what they are, not what they hold."""

    def __init__(self) -> None:
        super().__init__()
        self.maxother = self.maxstring = 80
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 6

    def repr_instance(self, x: Any, level: int) -> str:
        if hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, type):
            return f"{type(x).__name__} of shape {list(x.shape)}"
        if hasattr(x, "named_modules") and not isinstance(x, type):
            return f"a module {type(x).__name__}"
        return super().repr_instance(x, level)


_SHORT = _Short()


def short(value: object) -> str:
    """Show in a message what was found, however large it is."""
    return _SHORT.repr(value)
