"""Metrics that are means over samples: what each sample lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from taskprune.calling.placing import on_device
from taskprune.calling.task import check_validation, no_validation_batch
from taskprune.errors import InputError, short
from taskprune.promise.betting import FloatArray, Verdict, log_wealth, samples_needed, upper_bound
from taskprune.restore.lending import lent
from taskprune.restore.modes import evaluating

Scores: TypeAlias = Callable[[nn.Module, Any], Mapping[str, Tensor]]
"""``(model, batch) -> {task: a score for each sample, shape [B]}``; higher is better."""

ROUNDING = 1e-6
"""What a score may be off its range by."""


@dataclass(frozen=True, eq=False)
class PerSample:
    """Held-out samples and a score of every one of them for each task.

    What is compared is the mean over samples; it is what a promise is about. The samples must be
    independent draws of the data that it is to hold for, and neither pruned nor trained on; of a
    video, of which one frame is like the next, let a clip be the sample.

    Attributes:
        data: Batches of samples; gone through once for each model.
        scores: ``(model, batch) -> {task: scores}``, a score for each sample of the batch, higher
            is better. NaN where a sample has no label of the task; that must not hang on the model.
        lowest: What a score can be at least.
        highest: What a score can be at most.
    """

    data: Iterable[Any] = field(repr=False)
    scores: Scores
    lowest: float = 0.0
    highest: float = 1.0

    def __post_init__(self) -> None:
        check_validation(self.data, "once for each model")
        span = self.highest - self.lowest
        if not (math.isfinite(span) and span > 0):
            raise InputError(
                "Without bounds on the scores nothing can be promised of their mean: one sample in "
                "a million could undo it. Expected `lowest` below `highest`, both finite. Found "
                f"{self.lowest!r} and {self.highest!r}."
            )

    def measured(self, model: nn.Module) -> dict[str, FloatArray]:
        """Return each task's score of every sample, with the model in eval mode.

        Raises:
            InputError: There is no batch, a score is out of range, or they are none.
        """
        parts: dict[str, list[FloatArray]] = {}
        device = next(model.parameters()).device
        is_empty = True
        with evaluating(model), torch.no_grad():
            for stored in self.data:
                is_empty = False
                batch = on_device(stored, device)
                with lent(batch):
                    found = self.scores(model, batch)
                for task, scores in self._checked(found).items():
                    parts.setdefault(task, []).append(scores)
        if is_empty:
            raise no_validation_batch()
        return {task: np.concatenate(own) for task, own in parts.items()}

    def judged(
        self, before: FloatArray, after: FloatArray, *, task: str, tolerance: float, level: float
    ) -> Verdict:
        """Say whether a task's mean score fell by no more than it may.

        Args:
            before: Of the original, from :meth:`measured`. Shape ``[n]``.
            after: Of the smaller model, on the same samples.
            task: Its name, for messages.
            tolerance: What the mean may fall by.
            level: Probability of saying so where it is not so.

        Raises:
            InputError: The samples are not the same, or no sample has a label.
        """
        if len(before) != len(after) or not np.array_equal(np.isnan(before), np.isnan(after)):
            raise InputError(
                f"Both models must be scored on the same samples. The scores of `{task}` are NaN "
                "for other samples than before, or of another number. NaN says that a sample has "
                "no label: give every labelled one a score, such as 1 where nothing is there and "
                "nothing was found, and go through the data in the same order each time."
            )
        losses = (before - after)[~np.isnan(before)]
        if not len(losses):
            raise InputError(f"None of the samples has a label of `{task}`. Found NaN alone.")
        largest = self.highest - self.lowest
        holds = log_wealth(losses, tolerance, largest) >= math.log(1 / level)
        return Verdict(
            holds=holds,
            samples=len(losses),
            lost=float(losses.mean()),
            at_most=upper_bound(losses, largest, level),
            needed=None if holds else samples_needed(losses, tolerance, largest, level),
            least=samples_needed(np.zeros(1), tolerance, largest, level),
        )

    def _checked(self, found: Any) -> dict[str, FloatArray]:
        are_tensors = isinstance(found, Mapping) and all(
            isinstance(scores, Tensor) for scores in found.values()
        )
        if not are_tensors or not found:
            raise InputError(
                "`scores` must return {task: tensor of a score for each sample}. Found "
                f"{short(found)}."
            )
        checked = {}
        for task, scores in found.items():
            values = scores.detach().to("cpu", torch.float64)
            if values.ndim != 1 or not len(values):
                raise InputError(
                    f"`scores` must return one score for each sample of the batch, shape [B]. "
                    f"Found shape {list(values.shape)} for `{task}`."
                )
            low, high = self.lowest - ROUNDING, self.highest + ROUNDING
            if bool(((values < low) | (values > high)).any()):
                raise InputError(
                    f"Expected scores of `{task}` from {self.lowest:g} to {self.highest:g}. Found "
                    f"{float(values.nan_to_num(self.lowest).min()):.4g} to "
                    f"{float(values.nan_to_num(self.lowest).max()):.4g}. Pass `lowest=` and "
                    "`highest=`, bounds that hold for any sample, not for these alone."
                )
            checked[task] = values.clamp(self.lowest, self.highest).numpy()
        return checked
