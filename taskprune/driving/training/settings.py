"""What a training run can be told, and the learning rate that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from taskprune.errors import InputError

FINAL_LR_RATIO = 0.02
"""Learning rate at the end, as a part of the highest one."""


@dataclass(frozen=True)
class TrainSettings:
    """Recipe of a training run.

    Exactly one of `steps` and `minutes` ends the run. With `minutes` the learning rate follows
    the clock, so that a run on a shared machine ends when it should, whatever its speed; only a
    run of so many `steps` can be repeated exactly.

    Attributes:
        steps: Optimizer steps.
        minutes: Time spent training and validating, summed up over resumed parts.
        batch_size: Images a step.
        lr: Highest learning rate.
        weight_decay: AdamW's, on weights of convolutions and linear layers only.
        warmup: Part of the run in which the learning rate rises.
        average_decay: Decay of the moving average of the weights, which is what comes out.
        clip_norm: Largest norm of the gradient of all parameters.
        bfloat16: Run convolutions and matrix products in bfloat16.
        workers: Processes that prepare images; 0: none.
        seed: Seed of data order, augmentation and denoising.
        log_every: Steps between lines of the log.
        save_every: Steps between checkpoints.
        validate_every: Steps between validations; the last step always validates.
    """

    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    average_decay: float = 0.998
    clip_norm: float = 10.0
    bfloat16: bool = False
    workers: int = 1
    seed: int = 0
    log_every: int = 20
    save_every: int = 200
    validate_every: int = 300

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise InputError(
                "Exactly one of `steps` and `minutes` must be set. "
                f"Found steps={self.steps}, minutes={self.minutes}."
            )
        for field in fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.name in ("workers", "weight_decay", "warmup", "seed", "bfloat16")
            if value is not None and (value < 0 or (value == 0 and not may_be_zero)):
                raise InputError(
                    f"`{field.name}` must be {'at least 0' if may_be_zero else 'positive'}. "
                    f"Found {value!r}."
                )
        if not (self.warmup < 1 and self.average_decay < 1):
            raise InputError(
                "`warmup` and `average_decay` must lie below 1. "
                f"Found {self.warmup} and {self.average_decay}."
            )

    def progress(self, step: int, elapsed_s: float) -> float:
        """Return the finished part of the run, 0 to 1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None
        return min(1.0, elapsed_s / (60 * self.minutes))

    def learning_rate(self, progress: float) -> float:
        """Return the rate at `progress` in 0..1: linear warm-up, then half a cosine."""
        if progress < self.warmup:
            # The first step moves too: a rate of zero would waste it.
            return self.lr * max(progress / self.warmup, FINAL_LR_RATIO)
        done = (progress - self.warmup) / (1 - self.warmup)
        cosine = (1 + math.cos(math.pi * done)) / 2
        return self.lr * (FINAL_LR_RATIO + (1 - FINAL_LR_RATIO) * cosine)
