"""Stop when a figure that callbacks measure no longer grows."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from taskprune.distillation.history import Callback, StepRecord
from taskprune.distillation.tensorboard_log import TensorBoardLog
from taskprune.distillation.validation import Validation
from taskprune.errors import InputError

_log = logging.getLogger("taskprune")


@dataclass(frozen=True)
class EarlyStopping:
    """Ends training once a measured figure has not grown for a while.

    A function of the history alone, so a run that goes on from a checkpoint stops where it would
    have stopped anyway. The student keeps its last weights, not those of the best measurement; with
    ``ema_decay``, both measurement and last weights are the average's.

    A figure that none of the callbacks can measure is refused before training where they are all
    ``Validation`` or ``TensorBoardLog``. What others measure shows only while training: a warning
    is logged once when they measure something else, and at the end if the figure never came.

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


def check_figure(rule: EarlyStopping | None, callbacks: Sequence[Callback]) -> None:
    """Check that a figure to stop by can be measured, as far as that is known before training.

    Raises:
        InputError: No callback measures it.
    """
    if rule is None or not all(isinstance(c, Validation | TensorBoardLog) for c in callbacks):
        return
    names = _validated(callbacks)
    if rule.figure not in names:
        raise InputError(
            f"`EarlyStopping` waits for the figure `{rule.figure}`, which no callback measures. "
            f"Found {_listed(names)}."
        )


class Watch:
    """Counts measurements without growth, those of an earlier part of the run included.

    Args:
        rule: When to stop.
        callbacks: Those of the run.
        earlier: Its records so far.

    Attributes:
        is_over: Whether patience has run out.
    """

    def __init__(
        self,
        rule: EarlyStopping | None,
        callbacks: Sequence[Callback],
        earlier: Iterable[StepRecord],
    ) -> None:
        self.is_over = False
        self._rule = rule
        self._is_measured = False
        self._is_expected = rule is not None and rule.figure in _validated(callbacks)
        self._others: dict[str, None] = {}  # a set that keeps the order
        self._best = -math.inf
        self._n_idle = 0
        for record in earlier:
            self.see(record)

    def see(self, record: StepRecord) -> None:
        """Take in one record; those without the figure change nothing."""
        if self._rule is None:
            return
        if self._rule.figure not in record.measured:
            self._note(record)
            return
        self._is_measured = True
        value = record.measured[self._rule.figure]
        # A first measurement always counts; one of NaN never does.
        if value > self._best + self._rule.least_gain:
            self._best, self._n_idle = value, 0
        else:
            self._n_idle += 1
        self.is_over = self._n_idle >= self._rule.patience

    def finish(self) -> None:
        """Say at the end of the run if the figure was never measured."""
        if self._rule is not None and not self._is_measured:
            _log.warning(
                "Early stopping never looked: the figure `%s` was not measured in this run. Found "
                "%s.",
                self._rule.figure,
                _listed(self._others),
            )

    def _note(self, record: StepRecord) -> None:
        """Say once that other figures are measured; callbacks may take turns, so go on."""
        is_first = bool(record.measured) and not self._others
        self._others.update(dict.fromkeys(record.measured))
        if is_first and self._rule and not (self._is_measured or self._is_expected):
            _log.warning(
                "Early stopping waits for the figure `%s`, which was not measured in step %d, the "
                "first with figures. Found %s. If that is a slip, nothing will stop the run.",
                self._rule.figure,
                record.step,
                _listed(self._others),
            )


def _validated(callbacks: Iterable[Callback]) -> list[str]:
    """Return the figures that are known to come."""
    return [name for c in callbacks if isinstance(c, Validation) for name in c.figures]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no figures at all"
