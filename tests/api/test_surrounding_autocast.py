"""Inside a ``torch.autocast`` everything works, and its cache of casts holds nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from front_nets import TwoTaskNet, batches, images, two_task_net, two_tasks
from torch import Tensor, nn

import taskprune
from taskprune import Budget, PruneSettings
from taskprune.cost import measure_latency
from taskprune.testing import unchanged


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


class CachingInside(TwoTaskNet):
    """Has a block of its own, which asks for the cache."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
            return super().forward(x)


def as_before(net: nn.Module) -> None:
    """Assert that the model's own forward, gradients included, is that of a fresh block."""
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = net(images())["map"]
    found = net(images())["map"]
    assert type(found) is Tensor
    assert torch.equal(found, expected)
    weights = list(net.get_submodule("map").parameters())
    torch.autograd.grad(found.sum(), weights)


STAGES: dict[str, Callable[[nn.Module], Any]] = {
    "trace": lambda net: taskprune.trace(net, images()),
    "drop_task": lambda net: taskprune.drop_task(net, two_tasks(), "kind", data=batches(1)),
    "measure_latency": lambda net: measure_latency({"net": net}, images(), repeats=2, warmup=0),
    "prune in steps": lambda net: taskprune.prune(
        net, two_tasks(), 0.3, data=batches(2), settings=PruneSettings(steps=2)
    ),
}


@pytest.mark.parametrize("make", [TwoTaskNet, CachingInside])
@pytest.mark.parametrize("stage", STAGES)
def test_a_model_works_as_before_after_any_stage(stage: str, make: type[TwoTaskNet]) -> None:
    torch.manual_seed(0)
    net = make().eval()
    with autocast():
        STAGES[stage](net)
        as_before(net)


def test_casts_of_the_user_may_be_there_before() -> None:
    net = two_task_net().eval()
    with autocast():
        net(images())
        taskprune.trace(net, images())
        as_before(net)


@pytest.mark.parametrize("importance", ["task_change", "task_taylor", "taylor"])
def test_a_plan_is_as_good_as_outside(importance: str) -> None:
    net, data = two_task_net().eval(), batches(2)
    tasks = two_tasks()
    outside = taskprune.prune(net, tasks, 0.3, data=data, importance=importance)
    with autocast(), unchanged(net):
        inside = taskprune.prune(net, tasks, 0.3, data=data, importance=importance)
    assert [group.name for group in inside.groups] == [group.name for group in outside.groups]
    assert inside.report.frozen == outside.report.frozen
    assert inside.report.costs["params"] == pytest.approx(outside.report.costs["params"], rel=0.01)
    assert inside.report.costs["macs"][0] == outside.report.costs["macs"][0]
    with autocast():
        as_before(net)
        as_before(inside.model.eval())


def test_outputs_are_found_from_losses() -> None:
    net = two_task_net().eval()
    tasks = {name: taskprune.Task(task.loss) for name, task in two_tasks().items()}
    with autocast():
        found = taskprune.prune(net, tasks, 0.3, data=batches(2))
        as_before(net)
    assert found.report.costs["params"][1] < found.report.costs["params"][0]


def test_a_latency_bound_is_met_inside(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKPRUNE_CACHE", str(tmp_path))
    net = two_task_net().eval()
    with autocast():
        budget = Budget(params=0.7, latency_ms=0.99)
        found = taskprune.prune(net, two_tasks(), budget=budget, data=batches(1))
        as_before(net)
    assert found.report.latency is not None


def test_weights_cut_in_place_are_cast_anew() -> None:
    net = two_task_net().eval()
    plan = taskprune.prune(net, two_tasks(), 0.3, data=batches(1)).plan
    with autocast():
        net(images())
        taskprune.apply_plan(net, plan, example_inputs=images(), inplace=True)
        as_before(net)


def test_a_student_learns_inside() -> None:
    """Every step casts the weights of that step."""
    teacher, data = two_task_net(), batches(4)
    settings = taskprune.DistillSettings(epochs=1, cpu=True)
    students = [two_task_net(1) for _ in range(2)]
    for student, cached in zip(students, (True, False), strict=True):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            taskprune.distill(
                student, teacher=teacher, tasks=two_tasks(), data=data, settings=settings
            )
            as_before(student.eval())
    first, second = (student.state_dict() for student in students)
    assert all(torch.equal(first[name], second[name]) for name in first)
