from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distill_toys import make_batches, make_net, make_tasks, same_state, state
from torch import Tensor, nn

from taskprune.distillation import MGD, DistillResult, DistillSettings, StepRecord, distill, ofd
from taskprune.errors import InputError


def go(student: nn.Module, steps: int, directory: Path | None = None, **more: Any) -> DistillResult:
    return distill(
        student,
        make_net(0),
        tasks=make_tasks(),
        data=make_batches(),
        taps=["stem", "stage"],
        settings=DistillSettings(
            steps=steps,
            learning_rate=1e-2,
            feature_loss=MGD(0.5),
            cpu=True,
            directory=directory,
            checkpoint_every=3,
            **more,
        ),
    )


def test_mgd_equals_its_equation() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)[:, :3]
    loss: Any = MGD(0.4).for_feature(teacher)
    torch.manual_seed(1)
    found = loss(student, teacher)
    torch.manual_seed(1)
    seen = (torch.rand(2, 1, 5, 5) >= 0.4).float()
    torch.testing.assert_close(found, (teacher - loss.generator(student * seen)).square().mean())


def test_generators_learn_and_are_not_part_of_the_student() -> None:
    student = make_net(1, width=4)
    names = set(student.state_dict())
    history = go(student, 120).history
    features = [sum(r.features.values()) for r in history]
    assert sum(features[-8:]) < 0.8 * sum(features[:8])
    assert set(student.state_dict()) == names


def test_generators_survive_an_interruption(tmp_path: Path) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(record: StepRecord, student: nn.Module) -> None:
        if record.step == 5:
            raise Interrupted

    whole, resumed = make_net(1, width=4), make_net(1, width=4)
    go(whole, 8)
    with pytest.raises(Interrupted):
        go(make_net(1, width=4), 8, tmp_path, callbacks=(interrupt,))
    go(resumed, 8, tmp_path)
    assert same_state(state(resumed), state(whole))


def test_mgd_refuses_tokens_and_ratios_that_hide_nothing_or_all() -> None:
    with pytest.raises(InputError, match=r"on a map \[B, C, H, W\]. Found shape \(2, 7, 4\)"):
        MGD().for_feature(torch.zeros(2, 7, 4))
    for ratio in (0.0, 1.0):
        with pytest.raises(InputError, match="mask_ratio"):
            MGD(ratio)


def reference_ofd(student: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for c in range(teacher.shape[1]):
        negative = [v for v in teacher[:, c].flatten().tolist() if v < 0]
        margin = sum(negative) / len(negative) if negative else 0.0
        pairs = zip(student[:, c].flatten().tolist(), teacher[:, c].flatten().tolist(), strict=True)
        for s, t in pairs:
            target = max(t, margin)
            total += 0.0 if s <= target <= 0 else (target - s) ** 2
    return total / teacher.numel()


def test_ofd_equals_its_equation() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    teacher[:, 1] = teacher[:, 1].abs()  # a channel that is always on has no margin
    assert ofd(student, teacher).item() == pytest.approx(reference_ofd(student, teacher))


def test_ofd_leaves_a_student_alone_that_is_off_where_the_teacher_is() -> None:
    teacher = torch.tensor([-1.0, -3.0, -2.0, 2.0]).reshape(1, 1, 2, 2)
    student = torch.tensor([-5.0, -9.0, -2.0, 2.0]).reshape(1, 1, 2, 2).requires_grad_()
    loss = ofd(student, teacher)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()
