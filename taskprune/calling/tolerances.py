"""Whether every task still does what its user asks of it, in its own metric."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from taskprune.calling.task import Task, check_validation
from taskprune.errors import InputError

_log = logging.getLogger("taskprune")


@dataclass(frozen=True, slots=True)
class BrokenTolerance:
    """A task that lost more of its metric than it may.

    Attributes:
        task: Its name.
        step: The step, or the point of a frontier, after which it was measured, from 1.
        before: The metric of the original.
        after: The metric after that step.
        tolerance: How much may be lost.
    """

    task: str
    step: int
    before: float
    after: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"`{self.task}` fell from {self.before:.4g} to {self.after:.4g} and may lose "
            f"{self.tolerance:.4g}"
        )


def check_watched(tasks: Mapping[str, Task], validation: Iterable[Any] | None) -> Iterable[Any]:
    """Return the validation data if there is all that metrics and tolerances need.

    Raises:
        InputError: A task has a tolerance and no metric, there is no data to measure a metric on,
            it is empty, or it can be gone through only once.
    """
    for name, task in tasks.items():
        if task.tolerance is not None and task.metric is None:
            raise InputError(
                f"Task `{name}` has a tolerance of {task.tolerance} but no `metric` that it could "
                "be measured in. Give it one, or leave the tolerance out."
            )
    watched = any(task.metric is not None for task in tasks.values())
    if validation is None and watched:
        raise InputError(
            "Tasks have metrics, but there is no data to measure them on. Pass `validation=`, "
            "batches that are not trained on."
        )
    if validation is None:
        return ()
    return check_validation(validation, "before the first step and after each")


def unwatched(tasks: Mapping[str, Task]) -> tuple[str, ...]:
    """Return, and log, the note that tolerances are not checked; nothing where there are none.

    Args:
        tasks: The tasks of a run without validation data.
    """
    names = [f"`{name}`" for name, task in tasks.items() if task.tolerance is not None]
    if not names:
        return ()
    note = (
        f"Not checked: the tolerance of {', '.join(names)}. Pass `validation=` to measure metrics "
        "on it, and to undo a step that costs a task more."
    )
    _log.warning("%s", note)
    return (note,)


def changes(
    before: Mapping[str, float],
    after: Mapping[str, float],
    units: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return what each metric has changed by; one that has become NaN as a loss without limit.

    Args:
        before: Metrics by task.
        after: The same of another model.
        units: In which to tell it. ``None``: parts of what it was, or itself where that is 0.
    """
    units = units or {name: abs(was) or 1.0 for name, was in before.items()}
    return {
        name: -math.inf if math.isnan(after[name]) else (after[name] - was) / units[name]
        for name, was in before.items()
    }


def worst_change(
    before: Mapping[str, float],
    after: Mapping[str, float],
    units: Mapping[str, float] | None = None,
) -> float:
    """Return the least of the :func:`changes`, as in multi-task surveys.

    References:
        Vandenhende et al., *Multi-Task Learning for Dense Prediction Tasks: A Survey*, TPAMI 2021,
        arXiv:2004.13379, equation 8 (of which this is the worst term instead of the mean).
    """
    return min(changes(before, after, units).values())


def broken_tolerances(
    tasks: Mapping[str, Task],
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    step: int,
) -> tuple[BrokenTolerance, ...]:
    """Return the tasks whose metric fell by more than their tolerance.

    Args:
        tasks: Tolerances by task.
        before: Metrics of the original.
        after: Metrics after the step.
        step: Its number.
    """
    tolerances = {n: task.tolerance for n, task in tasks.items() if task.tolerance is not None}
    return broken_among(tolerances, before, after, step=step)


def broken_among(
    tolerances: Mapping[str, float],
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    step: int,
) -> tuple[BrokenTolerance, ...]:
    """Do what :func:`broken_tolerances` does, with the tolerances by task."""
    return tuple(
        BrokenTolerance(name, step, before[name], after[name], tolerance)
        for name, tolerance in tolerances.items()
        # Written so that a metric of NaN counts as broken.
        if not before[name] - after[name] <= tolerance
    )
