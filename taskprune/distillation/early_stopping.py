"""Stop when a figure that callbacks measure no longer grows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from taskprune.distillation.history import StepRecord
from taskprune.errors import InputError


@dataclass(frozen=True)
class EarlyStopping:
    """Ends training once a measured figure has not grown for a while.

    A function of the history alone, so a run that goes on from a checkpoint stops where it would
    have stopped anyway. The student keeps its last weights, not those of the best measurement.

    Example:
        >>> validation = Validation(tasks, held_out, every=200)
        >>> DistillSettings(
        ...     steps=10_000,
        ...     callbacks=(validation,),
        ...     early_stopping=EarlyStopping("validation/lane", patience=5),
        ... )

    Attributes:
        figure: Its name in ``StepRecord.measured``, higher is better. It must be the same in every
            process, as it is when all validate on the same data.
        patience: Measurements in a row without growth that are too many.
        least_gain: What counts as growth is more than this.
    """

    figure: str
    patience: int
    least_gain: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.patience, bool) or not isinstance(self.patience, int):
            raise InputError(f"`patience` must be a whole number. Found {self.patience!r}.")
        if self.patience < 1 or not self.least_gain >= 0:
            raise InputError(
                "`EarlyStopping` needs `patience` of at least 1 and `least_gain` of at least 0. "
                f"Found {self.patience} and {self.least_gain}."
            )


class Watch:
    """Counts measurements without growth, those of an earlier part of the run included.

    Attributes:
        is_over: Whether patience has run out.
    """

    def __init__(self, rule: EarlyStopping | None, earlier: Iterable[StepRecord]) -> None:
        self.is_over = False
        self._rule = rule
        self._best = -math.inf
        self._n_idle = 0
        for record in earlier:
            self.see(record)

    def see(self, record: StepRecord) -> None:
        """Take in one record; those without the figure change nothing."""
        if self._rule is None or self._rule.figure not in record.measured:
            return
        value = record.measured[self._rule.figure]
        # A first measurement always counts; one of NaN never does.
        if value > self._best + self._rule.least_gain:
            self._best, self._n_idle = value, 0
        else:
            self._n_idle += 1
        self.is_over = self._n_idle >= self._rule.patience
