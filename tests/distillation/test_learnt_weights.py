from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_toys import make_batches, make_net, make_tasks, same_state, state
from torch import nn

from taskprune.distillation import (
    DistillResult,
    DistillSettings,
    StepRecord,
    UncertaintyWeights,
    distill,
)
from taskprune.errors import CheckpointError, InputError


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


def interrupt(record: StepRecord, student: nn.Module) -> None:
    if record.step == 5:
        raise Interrupted


def go(student: nn.Module, steps: int = 8, **changes: Any) -> DistillResult:
    settings = {"weighting": UncertaintyWeights(0.1), "checkpoint_every": 3, **changes}
    return distill(
        student,
        make_net(0),
        tasks=make_tasks(),
        data=make_batches(),
        taps=["stage"],
        settings=DistillSettings(steps=steps, learning_rate=1e-2, cpu=True, **settings),
    )


def test_the_descent_is_that_of_the_papers_loss() -> None:
    weighting = UncertaintyWeights(0.05, largest_move=10.0)
    s = torch.tensor([0.0, 0.3], dtype=torch.float64, requires_grad=True)
    losses = torch.tensor([2.0, 0.1], dtype=torch.float64)
    (0.5 * (-s).exp() * losses + 0.5 * s).sum().backward()  # type: ignore[no-untyped-call]
    assert s.grad is not None
    new = weighting.updated({"a": 0.0, "b": 0.3}, {"a": 2.0, "b": 0.1}, {})
    expected = s.detach() - 0.05 * s.grad
    assert list(new.values()) == pytest.approx(expected.tolist())


def test_weights_settle_where_the_papers_loss_is_least() -> None:
    weighting = UncertaintyWeights(0.5)
    learnt: dict[str, float] = {}
    for _ in range(500):
        learnt = weighting.updated(learnt, {"a": 4.0, "b": 0.25}, {})
    assert learnt == pytest.approx({"a": math.log(4.0), "b": math.log(0.25)}, abs=1e-3)
    assert weighting.weight(learnt, "a") == pytest.approx(0.5 / 4)


def test_a_task_without_labels_keeps_its_weight_and_an_outlier_moves_it_little() -> None:
    learnt = UncertaintyWeights().updated({"a": 0.2, "b": 0.7}, {"a": 1e9}, {})
    assert learnt == pytest.approx({"a": 0.3, "b": 0.7})


def test_the_loss_is_weighed_by_what_is_learnt_and_by_the_tasks_own_weight() -> None:
    history = go(make_net(1)).history
    assert history[0].weights == {"near": 0.5, "far": 0.25}
    assert history[-1].weights != history[0].weights
    for record in history:
        tasks = sum(record.weights[name] * loss for name, loss in record.tasks.items())
        assert record.loss == pytest.approx(tasks + sum(record.features.values()), rel=1e-5)


def test_what_is_learnt_survives_an_interruption(tmp_path: Path) -> None:
    whole, resumed = make_net(1), make_net(1)
    expected = go(whole)
    with pytest.raises(Interrupted):
        go(make_net(1), directory=tmp_path, callbacks=(interrupt,))
    assert go(resumed, directory=tmp_path).history == expected.history
    assert same_state(state(resumed), state(whole))


def test_a_run_with_other_weighting_is_refused(tmp_path: Path) -> None:
    go(make_net(1), directory=tmp_path)
    with pytest.raises(CheckpointError, match="another run: `weighting`"):
        go(make_net(1), directory=tmp_path, weighting=None)


def test_rates_that_are_not_positive_are_refused() -> None:
    with pytest.raises(InputError, match=r"UncertaintyWeights\.learning_rate"):
        UncertaintyWeights(0.0)
