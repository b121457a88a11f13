"""Scoring holds what a bare loop of forward and backwards holds for the backward, and no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hand_made import TwoTaskNet, batches, two_task_groups, two_task_net, two_tasks
from torch import Tensor

from taskprune.calling.task import Task
from taskprune.importance import score
from taskprune.importance.calibration import for_each_batch
from taskprune.importance.scores import Evidence


class Meter:
    """Bytes that are held for a backward, now and at the peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> Held:
        return Held(self, tensor)

    def __deepcopy__(self, memo: Any) -> Meter:
        return self


class Held:
    def __init__(self, meter: Meter, tensor: Tensor) -> None:
        # Detached: a saved output would hold its own graph.
        self.meter, self.tensor = meter, tensor.detach()
        self.bytes = tensor.numel() * tensor.element_size()
        meter.now += self.bytes
        meter.peak = max(meter.peak, meter.now)

    def __del__(self) -> None:
        self.meter.now -= self.bytes


class Metered(TwoTaskNet):
    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.autograd.graph.saved_tensors_hooks(self.meter.pack, lambda held: held.tensor):
            return super().forward(x)


def metered() -> Metered:
    net = Metered()
    net.load_state_dict(two_task_net().state_dict())
    return net.eval()


def one_forward() -> int:
    net = metered()
    outputs = net(batches(1)[0][0])
    assert outputs
    return net.meter.peak


@pytest.mark.parametrize("criterion", ["task_change", "task_taylor", "taylor", "cosprune"])
def test_only_one_graph_is_alive_at_a_time(criterion: str) -> None:
    net = metered()
    score(net, two_task_groups(net), two_tasks(), batches(4), importance=criterion)
    assert net.meter.now == 0
    assert net.meter.peak == one_forward()


def test_the_graph_goes_with_the_last_backward() -> None:
    net = metered()
    left: list[int] = []
    for_each_batch(
        net,
        dict(net.named_parameters()),
        Evidence(two_tasks(), batches(2)),
        lambda batch: left.extend(net.meter.now for _ in batch),
    )
    whole = one_forward()
    assert 0 < left[0] < whole, "the first task's own head is not needed any more"
    assert left[1] == 0
    assert left == left[:2] * 2


def test_a_task_that_depends_on_no_channel_is_told_from_one_that_depends_on_nothing() -> None:
    net = two_task_net()
    aside = torch.nn.Parameter(torch.ones(3))
    net.register_parameter("aside", aside)
    tasks = two_tasks() | {"aside": Task(lambda _o, _b: aside.exp().sum())}
    found = score(net, two_task_groups(net), tasks, batches(2))
    assert float(found["stem"].per_task[2].abs().max()) == 0
    assert found.tasks == ("first", "second", "aside")
