"""Models without values: planned on the meta device, pruned where the weights are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from front_nets import Dense, Plain, TwoTaskNet, images, two_task_net, two_tasks
from torch import Tensor, nn

import taskprune
from taskprune import Budget
from taskprune.coupling import CouplingGroups
from taskprune.errors import InputError


def on_meta(make: type[nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize("make", [Plain, Dense, TwoTaskNet], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_plan_made_without_values_is_the_one_made_with_them(
    make: type[nn.Module], device: str
) -> None:
    net = make()
    plans = []
    for model, where in ((net, "cpu"), (on_meta(make), device)):
        groups = taskprune.couple(taskprune.trace(model, images(2).to(where)))
        scores = taskprune.score(model, groups, importance="random")
        plans.append(taskprune.solve(groups, scores, Budget.from_ratio(0.3)))
    assert plans[0] == plans[1]
    smaller = taskprune.apply_plan(net, plans[1], example_inputs=images(2))
    abstract = taskprune.apply_plan(on_meta(make), plans[1])
    assert all(tensor.is_meta for tensor in abstract.state_dict().values())
    assert str(abstract) == str(smaller)
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (abstract, smaller)]
    assert shapes[0] == shapes[1]


def test_the_front_door_plans_without_values_and_says_what_it_skipped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "taskprune"):
        result = taskprune.prune(
            on_meta(TwoTaskNet), two_tasks(), 0.3, example_inputs=images(2), importance="random"
        )
    assert result.report.verification is None
    assert "Not verified: `stem.weight` is on the meta device" in caplog.text
    assert "Not verified" in str(result)
    assert result.model.get_parameter("stem.weight").is_meta
    real = two_task_net()
    smaller = taskprune.apply_plan(real, result.plan, example_inputs=images(2))
    assert smaller(images(2))["map"].shape == real(images(2))["map"].shape


def test_a_plan_may_come_from_group_sizes_alone() -> None:
    def largest_first(
        _model: nn.Module, groups: CouplingGroups, _evidence: Any
    ) -> Mapping[str, Tensor]:
        return {g.name: torch.arange(1.0, g.n_channels + 1) / g.n_channels for g in groups}

    result = taskprune.prune(
        on_meta(Plain), None, 0.3, example_inputs=images(2), importance=largest_first
    )
    assert result.report.removed("params") >= 0.3


@pytest.mark.parametrize("importance", ["magnitude", "task_taylor"])
def test_criteria_that_need_weights_refuse(importance: str) -> None:
    net = on_meta(Plain)
    groups = taskprune.couple(taskprune.trace(net, images(2)))
    with pytest.raises(InputError, match=r"values.*layers\.0\.weight` is on the meta.*to_empty"):
        taskprune.score(net, groups, importance=importance)


def test_a_criterion_of_ones_own_that_needs_weights_is_told_so() -> None:
    def own(model: nn.Module, groups: CouplingGroups, _evidence: Any) -> Mapping[str, Tensor]:
        return {g.name: model.get_parameter(g.members[0].name).cpu() for g in groups}

    with pytest.raises(InputError, match=r"criterion own.*is on the meta device"):
        taskprune.prune(on_meta(Plain), None, 0.3, example_inputs=images(2), importance=own)


def test_tensors_that_a_forward_makes_join_the_model_on_the_meta_device() -> None:
    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x) + torch.arange(x.shape[1]).view(1, -1, 1))

    groups = taskprune.couple(taskprune.trace(on_meta(Positioned), torch.randn(2, 5, 3)))
    assert [group.n_channels for group in groups] == [8]


def test_training_needs_values() -> None:
    with pytest.raises(InputError, match="values to train"):
        taskprune.distill(on_meta(Plain), teacher=Plain(), tasks=two_tasks(), data=[])
