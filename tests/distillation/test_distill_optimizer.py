from __future__ import annotations

import math

import pytest
import torch
from distill_run import run, settings
from distill_toys import (
    make_net,
    same_state,
    state,
)
from torch import Tensor, nn

from taskprune.distillation import StepRecord
from taskprune.distillation.kept_weights import WeightAverage


def test_the_learning_rate_rises_and_falls() -> None:
    rate = settings(learning_rate=1.0, warmup=0.1).learning_rates(100)
    assert [rate(0), rate(4), rate(9), rate(10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert rate(55) == pytest.approx(0.505)
    assert 0.01 < rate(99) < 0.011
    record = run(make_net(1), make_net(0), settings=settings(40, warmup=0.5)).history[9]
    assert record.learning_rate == pytest.approx(0.5e-2)


def test_the_learning_rate_reaches_the_optimizer() -> None:
    seen: list[dict[str, Tensor]] = []
    student = make_net(1)
    before = student.far.weight.detach().clone()
    chosen = settings(
        2,
        learning_rate=1e-3,
        warmup=1.0,
        weight_decay=0.0,
        callbacks=(lambda _, net: seen.append(state(net)),),
    )
    run(student, make_net(0), settings=chosen)
    # AdamW's first step moves every entry by the learning rate, here half of its peak.
    moved = (seen[0]["far.weight"] - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 5e-4), atol=1e-6, rtol=0)


def test_biases_have_no_weight_decay() -> None:
    student = make_net(1)
    before = state(student)
    run(student, make_net(0), settings=settings(1, learning_rate=1e-3, weight_decay=100.0))
    assert student.far.bias is not None
    bias = (student.far.bias.detach() - before["far.bias"]).abs()
    weight = (student.far.weight.detach() - before["far.weight"]).abs()
    assert bias.max().item() < 1.1e-3 < weight.max().item()


def test_the_gradient_is_clipped() -> None:
    students = []
    for clip in (1e-12, math.inf):
        student = make_net(1)
        result = run(student, make_net(0), settings=settings(1, gradient_clip=clip))
        assert result.history[0].gradient_norm > 0.01
        students.append(state(student))
    assert not same_state(*students)


def test_a_weight_average_follows_its_formula() -> None:
    net = make_net(1, norm=True)
    average = WeightAverage(net, 0.9)
    expected = net.far.weight.detach().clone()
    for step in range(1, 120):
        with torch.no_grad():
            net.far.weight.add_(1.0)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net.far.weight.detach()
        average.update(step)
    torch.testing.assert_close(average.tensors["far.weight"], expected)
    average.give()
    assert torch.equal(net.far.weight, average.tensors["far.weight"])


def test_the_student_ends_with_the_average() -> None:
    plain, averaged = make_net(1), make_net(1)
    live: list[dict[str, Tensor]] = []
    run(
        plain,
        make_net(0),
        settings=settings(5, callbacks=(lambda _, net: live.append(state(net)),)),
    )
    run(averaged, make_net(0), settings=settings(5, ema_decay=0.9))
    assert same_state(live[-1], state(plain))
    expected = make_net(1).far.weight.detach()
    for step, weights in enumerate(live, start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights["far.weight"]
    torch.testing.assert_close(averaged.far.weight.detach(), expected)


@pytest.mark.parametrize("failing_step", [None, 3])
def test_callbacks_see_the_average_and_change_nothing(failing_step: int | None) -> None:
    plain, watched = make_net(1, norm=True), make_net(1, norm=True)
    teacher = make_net(0, norm=True)
    seen: list[dict[str, Tensor]] = []

    class FailedError(Exception):
        """A callback's own."""

    def watch(record: StepRecord, net: nn.Module) -> None:
        seen.append(state(net))
        with torch.no_grad():
            net.get_parameter("far.weight").add_(1.0)
        if record.step == failing_step:
            raise FailedError

    averaged = settings(5, ema_decay=0.9, callbacks=(watch,))
    if failing_step is None:
        run(plain, teacher, settings=settings(5, ema_decay=0.9))
        run(watched, teacher, settings=averaged)
        assert len(seen) == 5
        assert same_state(seen[-1], state(watched))
    else:
        live: list[dict[str, Tensor]] = []
        keep = settings(5, callbacks=(lambda _, net: live.append(state(net)),))
        run(make_net(1, norm=True), teacher, settings=keep)
        plain.load_state_dict(live[failing_step - 1])
        with pytest.raises(FailedError):
            run(watched, teacher, settings=averaged)
    assert same_state(state(plain), state(watched))
