"""Students that benchmarks share: what learns in a course of their training, and what does not."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

import torch
from students import Lessons, Student, healed
from torch import nn

import taskprune
from taskprune import DistillSettings, Task


class LaterIsBetter:
    """A metric that prefers the weights it sees last."""

    def __init__(self) -> None:
        self._measurements = itertools.count(1)

    def reset(self) -> None:
        """Forget nothing."""

    def update(self, outputs: Any, batch: Any, /) -> None:
        """Look at nothing."""

    def compute(self) -> float:
        """Return how many times it was asked."""
        return float(next(self._measurements))


def test_only_the_named_modules_learn_and_all_can_learn_again() -> None:
    parts = OrderedDict(trunk=nn.Conv2d(3, 8, 3), act=nn.ReLU(), head=nn.Conv2d(8, 2, 1))
    teacher = nn.Sequential(parts)
    data = [torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
    tasks = {"task": Task(lambda outputs, _: outputs.square().mean(), metric=LaterIsBetter())}
    pruned = taskprune.prune(teacher, tasks, ratio=0.3, data=data)
    student = Student(pruned.model, pruned.plan, seconds=0.0, steps=1)
    lessons = Lessons(tasks, lambda model, batch: model(batch), data, data, taps=())

    trained = healed(student, teacher, lessons, DistillSettings(steps=2), only=("head",))

    before, after = student.model.state_dict(), trained.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}
    assert all(parameter.requires_grad for parameter in trained.parameters())
