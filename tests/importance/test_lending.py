"""Batches that models and losses write to: the scores are right, and the batches as before."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import (
    Batch,
    TwoTaskNet,
    batches,
    first_loss,
    second_loss,
    two_task_groups,
    two_task_net,
    two_tasks,
)
from torch import Tensor

import taskprune
from taskprune.calling.task import Task
from taskprune.importance import score
from taskprune.restore.lending import lent

CRITERIA: dict[str, Any] = {
    "task_change": "task_change",
    "task_taylor": "task_taylor",
    "taylor": "taylor",
    "cosprune": "cosprune",
}


class InPlace(TwoTaskNet):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return super().forward(x.sub_(0.5).div_(0.25))


class OutOfPlace(TwoTaskNet):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return super().forward(x.sub(0.5).div(0.25))


def with_weights(net: TwoTaskNet) -> TwoTaskNet:
    net.load_state_dict(two_task_net().state_dict())
    return net.eval()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_that_writes_to_its_input_is_scored_like_one_that_does_not(criterion: str) -> None:
    groups, data = two_task_groups(two_task_net()), batches(4)
    found, expected = (
        score(with_weights(net), groups, two_tasks(), data, importance=CRITERIA[criterion])
        for net in (InPlace(), OutOfPlace())
    )
    for name, own in expected.groups.items():
        torch.testing.assert_close(found[name].total, own.total, rtol=0, atol=0)
    for batch, fresh in zip(data, batches(4), strict=True):
        torch.testing.assert_close(batch[0], fresh[0], rtol=0, atol=0)


def test_prune_sees_the_first_batch_as_it_is_each_time() -> None:
    data = batches(3)
    found, expected = (
        taskprune.prune(with_weights(net), two_tasks(), 0.4, data=data)
        for net in (InPlace(), OutOfPlace())
    )
    assert found.plan.kept == expected.plan.kept
    assert found.scores is not None
    assert expected.scores is not None
    for name, own in expected.scores.groups.items():
        torch.testing.assert_close(found.scores[name].total, own.total, rtol=0, atol=0)
    for batch, fresh in zip(data, batches(3), strict=True):
        torch.testing.assert_close(batch[0], fresh[0], rtol=0, atol=0)


def test_a_loss_may_take_its_labels_out_of_the_batch() -> None:
    net = two_task_net()

    def taking(outputs: Any, batch: Batch) -> Tensor:
        return second_loss(outputs, (batch[0], {"second": batch[1].pop("second")}))

    tasks = {"first": Task(first_loss), "second": Task(taking)}
    data, groups = batches(4), two_task_groups(net)
    found = score(net, groups, tasks, data)
    expected = score(net, groups, two_tasks(), batches(4))
    for name, own in expected.groups.items():
        torch.testing.assert_close(found[name].total, own.total, rtol=0, atol=0)
    assert all(list(batch[1]) == ["first", "second"] for batch in data)


@dataclass
class Plain:
    x: Tensor


@dataclass(slots=True)
class Slotted:
    x: Tensor


Named = namedtuple("Named", ["x"])


HOLDERS: dict[str, Any] = {
    "dict": lambda x: {"inner": {"x": x}},
    "list": lambda x: [[x]],
    "tuple": lambda x: ((x,), 3),
    "named tuple": Named,
    "dataclass": Plain,
    "slots": Slotted,
    "object": lambda x: SimpleNamespace(inner=SimpleNamespace(x=x)),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_tensors_are_found_in_all_kinds_of_batches(holder: str) -> None:
    x = torch.arange(6.0)
    with lent(HOLDERS[holder](x)):
        x.mul_(2)
        assert float(x[1]) == 2
    assert torch.equal(x, torch.arange(6.0))


def test_containers_get_back_what_they_held() -> None:
    x, y = torch.zeros(2), torch.ones(2)
    mapping, items, thing = {"x": x, "y": y}, [x, y], SimpleNamespace(x=x)
    with pytest.raises(KeyError), lent((mapping, items, thing)):  # noqa: PT012 - as code does it
        mapping["x"] = y
        mapping["new"] = mapping.pop("y")
        items.reverse()
        items.append(x)
        thing.x, thing.y = y, y
        raise KeyError
    assert list(mapping) == ["x", "y"]
    assert mapping["x"] is x
    assert mapping["y"] is y
    assert items[0] is x
    assert items[1] is y
    assert len(items) == 2
    assert thing.x is x
    assert not hasattr(thing, "y")


def test_shapes_views_and_arrays_are_restored() -> None:
    x, whole, array = torch.zeros(3), torch.arange(4.0), np.arange(3)
    with lent([x, whole[1:], array]):
        x.unsqueeze_(0).add_(1)
        whole.mul_(2)
        array += 1
    assert x.tolist() == [0, 0, 0]
    assert whole.tolist() == [0, 1, 2, 3]
    assert array.tolist() == [0, 1, 2]


def test_what_nobody_changed_is_not_written_to() -> None:
    x = torch.rand(3)
    with torch.inference_mode():
        constant = torch.rand(3)
    version = x._version
    with lent({"x": x, "constant": constant}):
        x.mul(2)
    assert x._version == version
