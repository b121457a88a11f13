"""How to distil: everything about the run that is not the models, the tasks or the data."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rich.console import Console
from torch import Tensor

from taskprune.distillation.history import Callback
from taskprune.distillation.losses import FeatureLoss, pkd
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
    "rate_factors": (
        lambda x: (
            isinstance(x, Mapping)
            and all(isinstance(n, str) and _is_number(x[n]) and 0 <= x[n] < math.inf for n in x)
        ),
        "a dict of numbers of at least 0 by names or patterns such as {'backbone.*': 0.1}",
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


DEFAULT_EPOCHS = 10

Schedule: TypeAlias = Callable[[int], float]
"""``step (from 0) -> value``. A function of the step alone, so there is nothing to save, as there
would be with ``torch.optim.lr_scheduler``."""

OutputLoss: TypeAlias = Callable[[Any, Any], Tensor]
"""``(student outputs, teacher outputs) -> scalar``, the student's from training mode."""


@dataclass(frozen=True)
class DistillSettings:
    """Settings of :func:`taskprune.distillation.distill`.

    A gentle recipe after pruning takes small steps with batch normalisation frozen, and ends with
    the best weights it saw, the ones it began with included::

        DistillSettings(
            steps=300,
            learning_rate=1e-4,
            frozen_batchnorm=True,
            keep_best=Validation(tasks, held_out, every=50),
        )

    Attributes:
        steps: Optimizer steps to make.
        epochs: Passes through the data instead of ``steps``; the data must have a length. With
            neither, 10 epochs.
        learning_rate: Peak of AdamW's learning rate; linear warmup, then cosine to a hundredth. A
            :data:`Schedule` takes the place of all that.
        rate_factors: Multiply the learning rate of parts of the student, by names or shell patterns
            of parameters, or of modules with all below them; the last that fits counts, and what
            none fits has 1. With 0 a part stays as it is, statistics of its batch normalisation
            included, and takes no gradient: ``{"*": 0, "decoder": 1}`` trains a decoder alone.
        warmup: Part of the steps spent rising to a `learning_rate` that is a number.
        weight_decay: Of tensors with two dims or more; biases and norms have none.
        gradient_clip: Largest gradient norm; ``math.inf`` clips nothing.
        accumulation: Batches per optimizer step; their losses are averaged.
        ema_decay: The student ends with a running average of its weights, of this decay; callbacks
            measure that, too.
        frozen_batchnorm: Batch normalisation uses its running statistics in training, too, and
            leaves them as they are; its weights and biases still learn. Statistics of a batch give
            a channel that pruning has left with next to no signal its old strength back, as noise.
            See "Batch normalisation after pruning" in ``docs/method.md`` for when that matters.
        feature_loss: Compares aligned features of a tap, see ``taskprune.distillation.losses``.
        feature_weight: Factor of the sum of feature losses; a :data:`Schedule` changes it by step.
        output_losses: Compare outputs as well, by name, each with weight 1; needs no labels.
        mixed_precision: ``"fp16"`` or ``"bf16"`` autocast; feature losses stay in float32.
        cpu: Stay on the CPU even where Accelerate finds an accelerator.
        seed: Of the order of the data and every random choice in training.
        directory: Holds ``checkpoint.safetensors`` and ``history.jsonl``. A run that finds its own
            checkpoint there goes on from it; one of other models, losses or settings is refused.
            Lambdas and local functions count as changed with their code, others with their name.
            ``None``: nothing is written.
        checkpoint_every: Steps between checkpoints.
        callbacks: Called after each step, in every process, with ``(StepRecord, student)``; figures
            they return join the history. With ``ema_decay`` the student has its averaged weights
            meanwhile, at the price of copying them, and changes of weights are lost.
        keep_best: The student ends with the weights that this measured best: those with which the
            task that lost most, as a part of the teacher's metric, had lost least. The weights
            that the run begins with are among them (step 0), so no run ends below its start.
            Measured every so many steps and after the last, beside ``callbacks``; figures join the
            history. ``None``: the student ends with its last weights.
        console: Where progress is shown. ``None``: standard error, if that is a terminal.
    """

    steps: int | None = None
    epochs: int | None = None
    learning_rate: float | Schedule = 3e-4
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    warmup: float = 0.05
    weight_decay: float = 1e-4
    gradient_clip: float = 10.0
    accumulation: int = 1
    ema_decay: float | None = None
    frozen_batchnorm: bool = False
    feature_loss: FeatureLoss = pkd
    feature_weight: float | Schedule = 1.0
    output_losses: Mapping[str, OutputLoss] = field(default_factory=dict)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    cpu: bool = False
    seed: int = 0
    directory: str | Path | None = None
    checkpoint_every: int = 500
    callbacks: tuple[Callback, ...] = ()
    keep_best: Validation | None = None
    console: Console | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.steps is not None and self.epochs is not None:
            raise InputError(
                f"Give `steps` or `epochs`. Found both: {self.steps} and {self.epochs}."
            )

    def n_steps(self, data: Any, *, n_processes: int = 1) -> int:
        """Return the number of optimizer steps on this data, split between processes.

        Raises:
            InputError: The length is set in epochs and the data has none, or too few batches.
        """
        if self.steps is not None:
            return self.steps
        epochs = self.epochs if self.epochs is not None else DEFAULT_EPOCHS
        try:
            n_batches = -(-len(data) // n_processes)
        except TypeError:
            raise InputError(
                f"{epochs} epochs cannot be counted in steps: the data has no length. Give "
                "`steps`, or data with `__len__` such as a list or a DataLoader."
            ) from None
        steps = epochs * n_batches // self.accumulation
        if steps < 1:
            raise InputError(
                f"{epochs} epochs of {n_batches} batches are less than one step of "
                f"{self.accumulation} batches."
            )
        return steps

    def learning_rates(self, n_steps: int) -> Schedule:
        """Return the learning rate as a function of the step."""
        if callable(self.learning_rate):
            return self.learning_rate
        peak, floor = self.learning_rate, self.learning_rate / 100
        n_warmup = round(self.warmup * n_steps)

        def rate(step: int) -> float:
            if step < n_warmup:  # the first step moves already
                return peak * (step + 1) / n_warmup
            progress = (step - n_warmup) / max(1, n_steps - n_warmup)
            return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

        return rate

    @property
    def feature_weights(self) -> Schedule:
        """The weight of the feature losses as a function of the step."""
        weight = self.feature_weight
        return weight if callable(weight) else lambda _: weight


def checked_settings(settings: object) -> DistillSettings:
    """Return the settings, or the default ones for ``None``.

    Raises:
        InputError: They are something else.
    """
    if settings is None:
        return DistillSettings()
    if not isinstance(settings, DistillSettings):
        raise InputError(
            f"`settings` must be a `DistillSettings`, such as `DistillSettings(steps=1000)`. Found "
            f"{type(settings).__name__}."
        )
    return settings
