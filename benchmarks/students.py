"""Pruned networks that more than one benchmark trains on, pruned once and kept under ``runs/``."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from subjects import Subject
from torch import nn

import taskprune
from taskprune import Budget, DistillSettings, PruneSettings, PruningPlan, Safety, Task
from taskprune.calling import Forward
from taskprune.distillation import Validation
from taskprune.importance import Importance
from taskprune.restore import flushed_denormals
from taskprune.rewrite.checkpoint import read_header

STUDENTS = Path(__file__).parents[1] / "runs" / "benchmarks" / "students"


@dataclass(frozen=True)
class Way:
    """How to get a smaller network: a row of a table.

    Attributes:
        importance: The criterion.
        compensate: Whether what reads removed channels is re-weighted.
        steps: In how many steps it is pruned.
        labels: Whether the tasks are known, or the outputs alone.
        distilled: Whether it is trained afterwards.
        safety: Limits; ``None``: the default ones.
        weights: What tasks count, where it is not 1.
        balanced: Whether tasks are weighed by what they lose of their metrics on held-out data.
    """

    importance: str | Importance
    compensate: bool
    steps: int | Literal["auto"] = 1
    labels: bool = True
    distilled: bool = False
    safety: Safety | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    balanced: bool = False


@dataclass(frozen=True)
class Student:
    """A pruned network.

    Attributes:
        model: The network, nothing trained.
        plan: What was removed.
        seconds: Processor time that pruning took, of all threads.
        steps: In how many steps it was pruned.
    """

    model: nn.Module
    plan: PruningPlan
    seconds: float
    steps: int

    def removed(self, cost: str) -> float:
        """Return the part of a cost that went."""
        before, after = self.plan.costs[cost]
        return 1 - after / before


def pruned(
    way: Way,
    teacher: nn.Module,
    tasks: Mapping[str, Task],
    *,
    data: Iterable[Any],
    forward: Forward,
    budget: Budget,
    held_out: Iterable[Any] = (),
    example: Any = None,
) -> Student:
    """Prune through the front door, nothing trained; latencies are those of the example."""
    weighed = {n: replace(t, weight=way.weights.get(n, t.weight)) for n, t in tasks.items()}
    started = time.process_time()
    with flushed_denormals():
        result = taskprune.prune(
            teacher,
            weighed if way.labels else None,
            data=data,
            validation=held_out if way.balanced else None,
            forward=forward,
            budget=budget,
            example_inputs=example,
            importance=way.importance,
            safety=way.safety,
            compensate=way.compensate,
            settings=PruneSettings(steps=way.steps, verify=False),
        )
    seconds = time.process_time() - started
    return Student(result.model, result.plan, seconds, max(1, len(result.report.steps)))


_USUAL = {field.name: getattr(Way("", compensate=True), field.name) for field in fields(Way)}


def kept(
    network: str,
    way: Way,
    budget: Budget,
    seed: int,
    teacher: nn.Module,
    make: Callable[[], Student],
) -> Student:
    """Return the student of a way from its file, made first where there is none."""
    # Fields that are as they always are do not count, so that a new one leaves old files known.
    untrained = {
        field.name: re.sub(r" at 0x\w+", "", repr(getattr(way, field.name)))
        for field in fields(way)
        if field.name != "distilled" and getattr(way, field.name) != _USUAL[field.name]
    }
    text = json.dumps([network, untrained, repr(budget), seed])
    path = STUDENTS / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        student = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"of": text, "seconds": student.seconds, "steps": student.steps}
        taskprune.save_checkpoint(path, student.model, student.plan, metadata=facts)
        return student
    header = read_header(path)
    model = taskprune.load_checkpoint(path, teacher)
    return Student(model, header.plan, header.metadata["seconds"], header.metadata["steps"])


@dataclass(frozen=True)
class Lessons:
    """What a student is trained with.

    Attributes:
        tasks: Losses and metrics.
        forward: ``(model, batch) -> outputs``.
        training: Batches.
        held_out: Batches to choose the best weights by.
        taps: The modules whose features it follows; ``None``: those that all tasks share.
    """

    tasks: Mapping[str, Task]
    forward: Forward
    training: Iterable[Any]
    held_out: Iterable[Any]
    taps: Sequence[str] | None = None


def lessons_of(subject: Subject, seed: int, steps: int) -> Lessons:
    """Return what students of a subject are trained with."""
    return Lessons(
        subject.tasks(),
        subject.forward,
        subject.training(seed, steps),
        subject.held_out(seed),
        subject.taps,
    )


def healed(
    student: Student, teacher: nn.Module, lessons: Lessons, settings: DistillSettings
) -> nn.Module:
    """Return a trained copy of the student: its best weights, those it began with included."""
    validation = Validation(
        lessons.tasks,
        lessons.held_out,
        every=max(1, settings.n_steps(()) // 3),
        forward=lessons.forward,
    )
    with flushed_denormals():
        return taskprune.distill(
            copy.deepcopy(student.model),
            teacher=teacher,
            tasks=lessons.tasks,
            data=lessons.training,
            plan=student.plan,
            taps=lessons.taps,
            forward=lessons.forward,
            settings=replace(settings, keep_best=validation),
        )


def recipe(way: Way, steps: int, seed: int) -> DistillSettings:
    """Return how a student is trained.

    Sliced ones by the library's defaults, which were found on such: statistics of batches bring
    back what slicing did to batch normalisation. Compensated ones need none of that,
    and a running average of their weights is judged; of five recipes tried on one seed of *dense*
    it kept the worst task best.
    """
    if way.compensate:
        return DistillSettings(
            steps=steps, seed=seed, warmup=0.1, frozen_batchnorm=True, ema_decay=0.95
        )
    return DistillSettings(steps=steps, seed=seed)
