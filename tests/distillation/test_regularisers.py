"""Regularisers act after every step, and their state is part of the run."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from distill_run import run, settings
from distill_toys import make_net
from torch import Tensor, nn

from taskprune.errors import InputError


class Shrinking(nn.Module):
    """Multiplies all weights by a factor and counts."""

    count: Tensor

    def __init__(self, student: nn.Module, seen: list[int]) -> None:
        super().__init__()
        self.weights = list(student.parameters())
        self.seen = seen
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.seen.append(step)
        self.count += 1
        for weight in self.weights:
            weight.zero_()


@dataclass
class Shrink:
    seen: list[int] = field(default_factory=list)

    def for_student(self, student: nn.Module, n_steps: int, /) -> Shrinking:
        assert n_steps == 4
        return Shrinking(student, self.seen)


def test_they_act_after_every_step_and_before_the_average() -> None:
    shrink = Shrink()
    student = make_net(1)
    run(student, make_net(0), settings=settings(regularisers=(shrink,), ema_decay=1e-9))
    assert shrink.seen == [1, 2, 3, 4]
    assert all(not parameter.any() for parameter in student.parameters())
    assert not any("count" in name for name in student.state_dict())


class Trained(nn.Linear):
    def after_step(self, step: int) -> None:
        pass


class Trains:
    def for_student(self, student: nn.Module, n_steps: int, /) -> Trained:
        return Trained(2, 2)


def test_one_with_parameters_is_refused() -> None:
    with pytest.raises(InputError, match="without parameters"):
        run(make_net(1), make_net(0), settings=settings(regularisers=(Trains(),)))
