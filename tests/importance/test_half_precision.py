"""Gradients through float16: small ones do not vanish, large ones do not overflow."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hand_made import TwoTaskNet, batches, first_loss, second_loss, two_task_groups, two_task_net
from torch import Tensor

from taskprune.calling.task import Task
from taskprune.errors import LossError
from taskprune.importance import score
from taskprune.importance.half_precision import runs_in_half
from taskprune.importance.scores import ChannelScores

CRITERIA = ("task_change", "task_taylor", "taylor")


class Half(TwoTaskNet):
    """For float16 weights: only what lies between input and outputs is float16."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: t.float() for name, t in super().forward(x.half()).items()}


class Autocast(TwoTaskNet):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=torch.float16):
            outputs = super().forward(x)
        return {name: t.float() for name, t in outputs.items()}


def like(net: TwoTaskNet) -> TwoTaskNet:
    net.load_state_dict(two_task_net().state_dict())
    return net.eval()


def tasks(factor: float) -> dict[str, Task]:
    return {
        "first": Task(lambda outputs, batch: first_loss(outputs, batch)),
        "second": Task(lambda outputs, batch: factor * second_loss(outputs, batch)),
    }


def scores(net: TwoTaskNet, factor: float, criterion: str = "task_taylor") -> ChannelScores:
    return score(net, two_task_groups(net), tasks(factor), batches(3), importance=criterion)


NETS: dict[str, Any] = {
    "weights": lambda: like(Half()).half(),
    "autocast": lambda: like(Autocast()),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("factor", [1e-7, 1.0, 1e6])
def test_neither_small_nor_large_gradients_are_lost(net: str, factor: float) -> None:
    found, expected = scores(NETS[net](), factor), scores(two_task_net(), factor)
    for name, own in expected.groups.items():
        rows = own.per_task
        scale = float(rows[1].abs().max())
        torch.testing.assert_close(found[name].per_task[1], rows[1], rtol=0.1, atol=0.02 * scale)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_hears_a_task_with_a_small_loss(criterion: str) -> None:
    def only(net: TwoTaskNet, factor: float) -> Tensor:
        own = {"second": tasks(factor)["second"]}
        found = score(net, two_task_groups(net), own, batches(3), importance=criterion)
        return torch.cat([own.total for own in found.groups.values()])

    small, plain = only(NETS["weights"](), 2.0**-20), only(NETS["weights"](), 1.0)
    torch.testing.assert_close(small / small.max(), plain / plain.max(), rtol=0.05, atol=0.01)


def test_a_gradient_that_is_infinite_by_itself_is_refused() -> None:
    own = tasks(1.0) | {"second": Task(lambda o, _: (o["second"] * 0).sum().abs().sqrt())}
    net = NETS["weights"]()
    with pytest.raises(LossError, match="gradient of task `second` is not finite"):
        score(net, two_task_groups(net), own, batches(2))


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float32, False), (torch.bfloat16, False), (torch.float16, True)]
)
def test_only_float16_is_scaled(dtype: torch.dtype, expected: bool) -> None:
    weight = torch.ones(3, requires_grad=True)
    assert runs_in_half((weight.to(dtype) * 2).float().sum()) is expected


def test_a_task_whose_gradients_are_all_zero_is_named(caplog: pytest.LogCaptureFixture) -> None:
    own = tasks(1.0) | {"second": Task(lambda o, _: o["second"].clamp(1e6, 2e6).mean())}
    net = two_task_net()
    with caplog.at_level(logging.WARNING, "taskprune"):
        score(net, two_task_groups(net), own, batches(2))
    assert "All gradients of task `second` are exactly 0" in caplog.text
    assert "`first`" not in caplog.text
