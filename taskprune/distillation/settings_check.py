"""What each of the settings may be, as a table."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from taskprune.distillation.validation import Validation
from taskprune.errors import InputError, short

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value will do, and what is expected."""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type)


def _are(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple | list) and all(map(holds, value))


def _instance(kind: type, expected: str) -> Rule:
    return lambda value: isinstance(value, kind), expected


def _or_none(rule: Rule) -> Rule:
    holds, expected = rule
    return lambda value: value is None or holds(value), f"{expected}, or None"


_COUNT: Rule = (lambda x: _is_whole(x) and x >= 1, "a whole number of at least 1")

RULES: Mapping[str, Rule] = {
    "steps": _or_none(_COUNT),
    "epochs": _or_none(_COUNT),
    "learning_rate": (
        lambda x: _is_function(x) or (_is_number(x) and 0 < x < math.inf),
        "a positive number, or a function of the step",
    ),
    "warmup": (lambda x: _is_number(x) and 0 <= x <= 1, "a number between 0 and 1"),
    "weight_decay": (lambda x: _is_number(x) and 0 <= x < math.inf, "a number of at least 0"),
    "gradient_clip": (
        lambda x: _is_number(x) and x > 0,
        "a positive number (`math.inf` clips nothing)",
    ),
    "accumulation": _COUNT,
    "ema_decay": _or_none((lambda x: _is_number(x) and 0 < x < 1, "a number between 0 and 1")),
    "frozen_batchnorm": _instance(bool, "True or False"),
    "feature_loss": (_is_function, "a function (student, teacher) -> scalar such as `mse`"),
    "feature_weight": (
        lambda x: _is_function(x) or (_is_number(x) and 0 <= x < math.inf),
        "a number of at least 0, or a function of the step",
    ),
    "output_losses": (
        lambda x: (
            isinstance(x, Mapping) and all(isinstance(n, str) and _is_function(x[n]) for n in x)
        ),
        "a dict of functions (student outputs, teacher outputs) -> scalar by name ({} for none)",
    ),
    "mixed_precision": (lambda x: x in ("no", "fp16", "bf16"), "'no', 'fp16' or 'bf16'"),
    "cpu": _instance(bool, "True or False"),
    "seed": (lambda x: _is_whole(x) and x >= 0, "a whole number of at least 0"),
    "directory": _or_none((lambda x: isinstance(x, str | os.PathLike), "a path")),
    "checkpoint_every": _COUNT,
    "callbacks": (
        _are(_is_function),
        "a tuple of functions (StepRecord, student) -> figures or None, such as `(callback,)`",
    ),
    "keep_best": _or_none(_instance(Validation, "a `Validation(tasks, held_out, every=50)`")),
    "console": _or_none(_instance(Console, "a `rich.console.Console`")),
}


def check_settings(settings: object) -> None:
    """Check every setting.

    Args:
        settings: A ``DistillSettings``.

    Raises:
        InputError: A value is of the wrong kind or out of range.
    """
    for name, (holds, expected) in RULES.items():
        value = getattr(settings, name)
        if not holds(value):
            raise InputError(f"`DistillSettings.{name}` must be {expected}. Found {_shown(value)}.")


def _shown(value: object) -> str:
    if isinstance(value, type):
        return f"the class `{value.__name__}`; make an object of it, `{value.__name__}(...)`"
    return short(value)
