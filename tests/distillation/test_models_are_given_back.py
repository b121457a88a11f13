from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_run import run, settings
from distill_toys import (
    make_net,
    n_hooks,
    same_state,
    state,
)
from torch import Tensor, nn

from taskprune.calling.task import Task
from taskprune.distillation import (
    Tap,
)
from taskprune.errors import (
    InputError,
)


def test_the_teacher_is_left_bit_for_bit() -> None:
    teacher = make_net(0, norm=True, dropout=0.5)
    teacher.stage[1].eval()
    teacher.far.requires_grad_(False)
    weight = next(teacher.near.parameters())
    weight.grad = torch.ones_like(weight)
    before, flags = state(teacher), [m.training for m in teacher.modules()]
    run(make_net(1, norm=True), teacher)
    assert same_state(state(teacher), before)
    assert [m.training for m in teacher.modules()] == flags
    assert [p.requires_grad for p in teacher.far.parameters()] == [False, False]
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert teacher.stem[0].weight.grad is None
    assert n_hooks(teacher) == 0


class Noting(nn.Module):
    """Leaves something of every forward: an attribute, a list's entry, a count in a buffer."""

    steps: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen, self.last = net, ["before"], torch.zeros(1)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, images: Tensor) -> Any:
        outputs = self.net(images)
        self.steps += 1
        self.last, self.new = outputs["near"].mean(), outputs["far"]
        self.seen.append("again")
        return outputs


def test_what_the_teachers_forward_leaves_in_it_is_taken_out_again() -> None:
    teacher = Noting(make_net(0))
    before = dict(vars(teacher))
    run(Noting(make_net(1)), teacher, taps=["net.stem"])
    assert vars(teacher).keys() == before.keys()
    assert all(vars(teacher)[name] is value for name, value in before.items())
    assert teacher.seen == ["before"]
    assert teacher.steps == 0


def test_statistics_that_student_and_teacher_share_change_in_the_student_alone() -> None:
    teacher, student = make_net(0, norm=True), make_net(1, norm=True)
    theirs, mine = teacher.stage[1], student.stage[1]
    assert isinstance(theirs, nn.BatchNorm2d)
    assert isinstance(mine, nn.BatchNorm2d)
    mine.running_mean = theirs.running_mean
    before = state(teacher)
    run(student, teacher)
    assert same_state(state(teacher), before)
    assert not torch.equal(state(student)["stage.1.running_mean"], before["stage.1.running_mean"])


def test_the_student_is_given_back_with_its_flags_and_without_gradients() -> None:
    student = make_net(1, norm=True)
    student.eval()
    student.near.train()
    flags = [m.training for m in student.modules()]
    attributes = {name: set(vars(module)) for name, module in student.named_modules()}
    run(student, make_net(0, norm=True))
    assert [m.training for m in student.modules()] == flags
    assert {name: set(vars(module)) for name, module in student.named_modules()} == attributes
    assert all(p.grad is None and p.requires_grad for p in student.parameters())
    assert n_hooks(student) == 0


def test_hooks_are_removed_when_a_loss_raises() -> None:
    def loss(outputs: dict[str, Tensor], batch: Any) -> Tensor:
        raise ZeroDivisionError

    teacher, student = make_net(0), make_net(1)
    teacher.train()
    student.eval()
    with pytest.raises(ZeroDivisionError):
        run(student, teacher, tasks={"near": Task(loss)})
    assert n_hooks(student) == n_hooks(teacher) == 0
    assert teacher.training
    assert not student.training


class Tied(nn.Module):
    """One module called twice, one weight in two modules, one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.shared = nn.Conv2d(6, 6, 1)
        self.alias = self.shared
        self.near = nn.Conv2d(6, 1, 1)
        self.far = nn.Conv2d(6, 1, 1)
        self.far.weight = self.near.weight

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.alias(self.shared(self.stem(images)).relu())
        return {"near": self.near(x), "far": self.far(x)}


def test_tied_and_shared_modules_stay_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = Tied(), Tied()
    again = deepcopy(student)
    result = run(
        student,
        teacher,
        taps=["stem", Tap("shared", call=0), Tap("alias", call=1)],
        settings=settings(30, directory=tmp_path, ema_decay=0.5),
    )
    assert student.far.weight is student.near.weight
    assert student.alias is student.shared
    assert list(result.history[0].features) == ["stem", "shared@0", "alias@1"]
    assert result.history[-1].loss < result.history[0].loss
    run(
        again,
        teacher,
        taps=["stem", Tap("shared", call=0), Tap("alias", call=1)],
        settings=settings(30, directory=tmp_path, ema_decay=0.5),
    )
    assert same_state(state(again), state(student))


def test_the_student_trains_in_training_mode() -> None:
    student = make_net(1, norm=True)
    student.eval()
    before = state(student)
    run(student, make_net(0, norm=True))
    assert not torch.equal(
        student.state_dict()["stage.1.running_mean"], before["stage.1.running_mean"]
    )
    assert not student.training


def test_frozen_student_parameters_stay() -> None:
    student = make_net(1)
    student.stem.requires_grad_(False)
    before = state(student)
    run(student, make_net(0))
    after = state(student)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"stage", "near", "far"}


def test_the_users_own_accelerator_is_left_alone() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    run(make_net(1), make_net(0))
    states = (AcceleratorState, GradientState, PartialState)
    assert [dict(kind._shared_state) for kind in states] == [{}, {}, {}]
    own = Accelerator(cpu=True, gradient_accumulation_steps=5)
    run(make_net(1), make_net(0), settings=settings(accumulation=2))
    assert own.gradient_accumulation_steps == 5
    with pytest.raises(InputError, match="bf16"):
        run(make_net(1), make_net(0), settings=settings(mixed_precision="bf16"))
