"""A promise for one of several models, picked by the samples that it is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import nn

from taskprune.errors import InputError, ToleranceError, short
from taskprune.promise.betting import FloatArray, Verdict
from taskprune.promise.over_images import OverImages
from taskprune.promise.per_sample import PerSample

Samples: TypeAlias = PerSample | OverImages | Sequence[PerSample | OverImages]
"""Held-out samples, or several kinds of them for different tasks."""


class _Judge(Protocol):
    def __call__(
        self, before: FloatArray, after: FloatArray, *, task: str, tolerance: float, level: float
    ) -> Verdict: ...


@dataclass(frozen=True)
class TaskPromise:
    """What is promised of one task.

    Attributes:
        tolerance: What it may lose.
        lost: What it lost on the held-out samples.
        at_most: What it loses at most, with the confidence of the promise.
        samples: How many samples say so.
    """

    tolerance: float
    lost: float
    at_most: float
    samples: int


@dataclass(frozen=True)
class Promise:
    """With so much confidence no task loses more than its tolerance, on data like the samples.

    Attributes:
        confidence: Probability, before the samples were drawn, of promising nothing that is wrong.
        tasks: What is promised of each.
        tested: How many models were tested up to this one.
        is_exact: Whether the confidence holds for any number of samples; that of a bootstrap is
            approximate.
    """

    confidence: float
    tasks: Mapping[str, TaskPromise]
    tested: int
    is_exact: bool

    @property
    def assumptions(self) -> str:
        """What it takes for the confidence to be that."""
        return (
            "The samples are independent draws of the data that the promise is for; nothing was "
            "pruned, trained or calibrated on them; the tolerances were set before anybody looked. "
            "It is about what is lost on average, not on every sample."
            + ("" if self.is_exact else " The bootstrap's confidence is approximate.")
        )

    def __str__(self) -> str:
        about = "" if self.is_exact else "about "
        lines = [
            f"With {about}{100 * self.confidence:g} % confidence no task loses more than its "
            "tolerance on data like the samples:"
        ]
        lines += [
            f"  {task}: at most {own.at_most:.4g}, may lose {own.tolerance:.4g} (lost "
            f"{own.lost:.4g} on {own.samples:,} samples)"
            for task, own in self.tasks.items()
        ]
        return "\n".join([*lines, f"  {self.assumptions}"])


def promised(
    original: nn.Module,
    models: Iterable[Callable[[], nn.Module]],
    samples: Samples,
    tolerances: Mapping[str, float],
    confidence: float,
) -> list[Promise]:
    r"""Return a promise for each of the first models, up to the first that none can be made for.

    Each model is tested at level :math:`\alpha = 1 - confidence`, one after the other in an order
    that the samples have no say in, and the first failure ends it (fixed-sequence testing): only
    the test of the first model that breaks a tolerance can lead to a false promise, so the
    probability of any is at most :math:`\alpha`, whichever of the models is then picked and by
    whatever rule. Nor do several tasks cost anything: a model is promised if every task passes at
    :math:`\alpha`, and a false promise needs the task that breaks its tolerance to pass as well
    (an intersection-union test). Bonferroni's correction for both would test at
    :math:`\alpha / (models \cdot tasks)`.

    Args:
        original: What is lost is lost against it.
        models: Make the models, from the one that is likeliest to hold on; made one at a time.
        samples: What to judge by.
        tolerances: What each task may lose of its score.
        confidence: Between 0.5 and 1.

    Raises:
        InputError: A task has no samples, or scores are no scores.
        ToleranceError: There are too few samples to say anything, or not even the first model can
            be promised; says which task is in the way, and how many samples it would take.

    References:
        Maurer, Hothorn and Lehmacher, *Multiple comparisons in drug clinical trials and preclinical
        assays: a-priori ordered hypotheses*, 1995. Angelopoulos et al., *Learn then Test*, arXiv:
        2110.01052, use it to pick among models. Berger, *Multiparameter hypothesis testing and
        acceptance sampling*, Technometrics 24, 1982.
    """
    if not 0.5 <= confidence < 1:
        raise InputError(
            "`confidence` must be a probability from 0.5 on and below 1. "
            f"Found {short(confidence)}."
        )
    sources = (samples,) if isinstance(samples, PerSample | OverImages) else tuple(samples)
    before = [source.measured(original) for source in sources]
    judges = _judges(sources, before, tolerances)
    level = 1 - confidence
    made: list[Promise] = []
    for number, make in enumerate(models, start=1):
        model = make()
        after = [source.measured(model) for source in sources]
        verdicts = {
            task: judge(
                before[place][task],
                _own(after[place], task),
                task=task,
                tolerance=tolerances[task],
                level=level,
            )
            for task, (place, judge) in judges.items()
        }
        failed = {task: verdict for task, verdict in verdicts.items() if not verdict.holds}
        if failed and not made:
            raise ToleranceError(_refused(failed, tolerances, confidence))
        if failed:
            break
        tasks = {
            task: TaskPromise(tolerances[task], own.lost, own.at_most, own.samples)
            for task, own in verdicts.items()
        }
        is_exact = all(isinstance(sources[place], PerSample) for place, _ in judges.values())
        made.append(Promise(confidence, tasks, number, is_exact))
    return made


def _judges(
    sources: Sequence[PerSample | OverImages],
    before: Sequence[Mapping[str, FloatArray]],
    tolerances: Mapping[str, float],
) -> dict[str, tuple[int, _Judge]]:
    """Return which source speaks for each task."""
    found: dict[str, tuple[int, _Judge]] = {}
    for task in tolerances:
        places = [place for place, own in enumerate(before) if task in own]
        if len(places) != 1:
            known = ", ".join(f"`{name}`" for own in before for name in own)
            raise InputError(
                f"Every task with a tolerance needs samples that speak for it, of one kind. Found "
                f"{'several' if places else 'none'} for `{task}` among scores of {known}."
            )
        found[task] = places[0], sources[places[0]].judged
    return found


def _own(scores: Mapping[str, FloatArray], task: str) -> FloatArray:
    if task not in scores:
        raise InputError(
            f"Scores of `{task}` are there for the original and not for a smaller model. Return "
            "the same tasks for both."
        )
    return scores[task]


def _refused(
    failed: Mapping[str, Verdict], tolerances: Mapping[str, float], confidence: float
) -> str:
    """Say why no model can be promised."""
    reasons = []
    for task, own in failed.items():
        may = f"may lose {tolerances[task]:.4g}"
        if own.least is not None and own.samples < own.least:
            reasons.append(
                f"`{task}` has {own.samples:,} samples, and it takes {own.least:,} to promise "
                f"that a task loses no more than {tolerances[task]:.4g}, even where nothing is lost"
            )
        elif own.lost > tolerances[task]:
            reasons.append(f"`{task}` lost {own.lost:.4g} on the samples and {may}")
        else:
            needed = "more samples" if own.needed is None else f"about {own.needed:,} samples"
            reasons.append(
                f"`{task}` lost {own.lost:.4g} on {own.samples:,} samples, which could be "
                f"{own.at_most:.4g}, and {may}: it takes {needed} like these to tell"
            )
    return (
        f"Not even the largest model on the frontier can be promised with {100 * confidence:g} % "
        f"confidence: {'; '.join(reasons)}. Hold out more samples, or allow more."
    )
