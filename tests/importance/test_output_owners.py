"""Which outputs a task owns, found from its loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hand_made import batches, first_loss, second_loss, two_task_net, two_tasks

from taskprune.calling.task import Task
from taskprune.errors import InputError, LossError, TraceError
from taskprune.importance import output_owners
from taskprune.importance.owners import owners_from_batches


def test_owned_outputs_are_those_with_a_gradient() -> None:
    found = output_owners(two_task_net(), two_tasks(), batches(1)[0])
    assert found == {"first": ("first",), "second": ("second",)}


def test_a_loss_on_two_outputs_owns_both() -> None:
    both = Task(lambda o, b: first_loss(o, b) + second_loss(o, b))
    found = output_owners(two_task_net(), {"both": both}, batches(1)[0])
    assert found == {"both": ("first", "second")}


def test_declared_outputs_are_taken_without_running_the_model() -> None:
    tasks = {"a": Task(first_loss, outputs="first"), "b": Task(second_loss, outputs=("x.y", "z"))}
    assert output_owners(two_task_net(), tasks, None) == {"a": ("first",), "b": ("x.y", "z")}


def test_declared_and_found_outputs_mix() -> None:
    tasks = {"a": Task(first_loss, outputs="first"), "b": Task(second_loss)}
    assert output_owners(two_task_net(), tasks, batches(1)[0]) == {
        "a": ("first",),
        "b": ("second",),
    }
    wrong = tasks | {"a": Task(first_loss, outputs="third")}
    with pytest.raises(InputError, match="third"):
        output_owners(two_task_net(), wrong, batches(1)[0])


def test_the_model_is_left_as_it_was() -> None:
    net = two_task_net().train()
    net.stem.weight.requires_grad_(False)
    output_owners(net, two_tasks(), batches(1)[0])
    assert all(module.training for module in net.modules())
    assert not net.stem.weight.requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_batches_are_looked_at_until_every_task_had_labels() -> None:
    data = batches(6)
    drawn: list[int] = []

    def drawing() -> Iterator[Any]:
        for number, batch in enumerate(data):
            drawn.append(number)
            yield batch

    late = Task(lambda o, b: None if any(b is own for own in data[:2]) else second_loss(o, b))
    tasks = {"second": late, "first": Task(first_loss)}
    owners, again = owners_from_batches(two_task_net(), tasks, drawing())
    assert owners == {"second": ("second",), "first": ("first",)}
    assert list(owners) == list(tasks)
    assert drawn == [0, 1, 2]
    assert [id(batch) for batch in again] == [id(batch) for batch in data]


@pytest.mark.parametrize(("n_batches", "looked_at"), [(None, 16), (3, 3), (40, 16)])
def test_labels_are_not_looked_for_for_ever(n_batches: int | None, looked_at: int) -> None:
    data = iter(batches(20))
    tasks = {"first": Task(first_loss), "second": Task(lambda _o, _b: None)}
    message = rf"`second` has no labels in the first {looked_at} .*outputs='path'"
    with pytest.raises(LossError, match=message):
        owners_from_batches(two_task_net(), tasks, data, n_batches=n_batches)
    assert len(list(data)) == 20 - looked_at


def test_nothing_to_own_is_refused() -> None:
    net, batch = two_task_net(), batches(1)[0]
    weight = net.stem.weight
    with pytest.raises(LossError, match=r"`t` depends on none of .*first, second"):
        output_owners(net, {"t": Task(lambda _o, _b: weight.square().sum())}, batch)
    with pytest.raises(LossError, match=r"`t` has no labels"):
        output_owners(net, {"t": Task(lambda _o, _b: None)}, batch)
    with pytest.raises(TraceError, match="first calibration batch"):
        output_owners(net, two_tasks(), (torch.rand(1, 9, 8, 8), {}))
