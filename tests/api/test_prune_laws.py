"""What holds for every call of ``prune``: nothing borrowed is kept, same arguments same plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch_pruning as tp
from front_nets import (
    Batch,
    Dense,
    Plain,
    TwoTaskNet,
    assert_trains,
    batches,
    images,
    kind_loss,
    map_loss,
    same_weights,
    two_task_net,
    two_tasks,
    worn,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import taskprune
from taskprune import Budget, PruneSettings, Safety, Task
from taskprune.allocation import find_free
from taskprune.importance import TorchPruningImportance
from taskprune.plan.composition import compose
from taskprune.testing import randomise_, unchanged

# -- the user's model stays as it was --------------------------------------------------------------


@pytest.mark.parametrize(
    "importance", ["task_change", "task_taylor", "taylor", "cosprune", "magnitude", "random"]
)
def test_the_model_is_left_as_it_was(importance: str) -> None:
    net = worn(two_task_net())
    with unchanged(net):
        taskprune.prune(net, two_tasks(), 0.3, data=batches(2), importance=importance)


def test_the_model_is_left_as_it_was_when_outputs_are_found_from_losses() -> None:
    net = worn(two_task_net())
    tasks = {"kind": Task(kind_loss), "map": Task(map_loss)}
    with unchanged(net):
        result = taskprune.prune(net, tasks, 0.3, data=batches(2))
    assert result.groups.tasks == ("kind", "map")
    assert result.groups["kind.0"].tasks == {"kind"}


def test_the_model_is_left_as_it_was_when_the_forward_draws_numbers_and_keeps_tensors() -> None:
    class Restless(TwoTaskNet):
        seen: Tensor | None = None

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            self.calls = getattr(self, "calls", 0) + 1
            self.noise = torch.rand(1)
            outputs = super().forward(x)
            self.seen = outputs["map"]
            return outputs

    net = Restless(16)
    with unchanged(net):
        taskprune.prune(net, two_tasks(), 0.3, data=batches(2))


def test_the_smaller_model_shares_nothing_with_the_original() -> None:
    net = two_task_net()
    smaller = taskprune.prune(net, two_tasks(), 0.3, data=batches(2)).model
    assert type(smaller) is TwoTaskNet
    own = {t.data_ptr() for t in net.state_dict().values() if t.numel()}
    assert own.isdisjoint(t.data_ptr() for t in smaller.state_dict().values() if t.numel())
    assert {id(m) for m in net.modules()}.isdisjoint(id(m) for m in smaller.modules())


def test_the_smaller_model_keeps_flags_modes_and_dtypes() -> None:
    net = worn(two_task_net()).double()
    data = [(x.double(), kind, values.double()) for x, kind, values in batches(2)]
    smaller = taskprune.prune(net, two_tasks(), 0.3, data=data).model
    for (path, module), other in zip(net.named_modules(), smaller.modules(), strict=True):
        assert (path, module.training) == (path, other.training)
    for parameter, other_parameter in zip(net.parameters(), smaller.parameters(), strict=True):
        assert parameter.requires_grad == other_parameter.requires_grad
        assert other_parameter.dtype == torch.float64


@pytest.mark.parametrize(
    "importance",
    ["task_taylor", TorchPruningImportance(tp.importance.GroupMagnitudeImportance())],
    ids=["own", "peer's"],
)
def test_parametrised_weights_that_change_when_read_are_left_alone(importance: Any) -> None:
    """In training mode every look at a spectrally normalised weight is a step of its iteration."""
    net = two_task_net(width=12).train()
    parametrizations.spectral_norm(net.inner)
    parametrizations.spectral_norm(net.kind[0])
    with unchanged(net):
        result = taskprune.prune(net, two_tasks(), 0.2, data=batches(2), importance=importance)
    assert result.report.verification is not None
    assert result.report.verification.max_relative_error <= 1e-9


@dataclass(frozen=True)
class Interrupting:
    """A loss that is interrupted, as by Ctrl-C, on its second batch."""

    seen: list[int]

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        self.seen.append(1)
        if len(self.seen) == 2:
            raise KeyboardInterrupt
        return kind_loss(outputs, batch)


def test_an_interrupt_changes_nothing() -> None:
    net = worn(two_task_net())
    tasks = {"kind": Task(Interrupting([]), outputs="kind")}
    with unchanged(net), pytest.raises(KeyboardInterrupt):
        taskprune.prune(net, tasks, 0.3, data=batches(3))


def test_pruning_without_gradients_around_it_gives_a_model_that_trains() -> None:
    for context in (torch.no_grad, torch.inference_mode):
        net, data = two_task_net(), batches(1)
        with context():
            result = taskprune.prune(net, two_tasks(), 0.3, data=data)
        assert_trains(result.model)


# -- one decision, whichever way it is reached -----------------------------------------------------


def test_stage_by_stage_gives_the_same() -> None:
    net, tasks, data = two_task_net(), two_tasks(), batches(3)
    result = taskprune.prune(net, tasks, 0.35, data=data)
    graph = taskprune.trace(net, data[0], forward=lambda m, b: m(b[0]), tasks=tasks)
    groups = taskprune.couple(graph)
    scores = taskprune.score(net, groups, tasks, data)
    free = find_free(net, groups, data, tasks=tasks)
    plan = taskprune.solve(groups, free.first(scores), Budget.from_ratio(0.35))
    smaller = taskprune.apply_plan(net, plan)
    assert plan == result.plan
    assert same_weights(smaller, result.model)
    with torch.no_grad():
        assert torch.equal(
            smaller.eval()(data[0][0])["map"], result.model.eval()(data[0][0])["map"]
        )


@pytest.mark.parametrize("importance", ["task_taylor", "random"])
def test_same_arguments_give_the_same_plan(importance: str) -> None:
    torch.manual_seed(1)
    first = taskprune.prune(
        two_task_net(), two_tasks(), 0.4, data=batches(2), importance=importance
    )
    torch.manual_seed(2)
    again = taskprune.prune(
        two_task_net(), two_tasks(), 0.4, data=batches(2), importance=importance
    )
    assert first.plan == again.plan
    assert same_weights(first.model, again.model)


@pytest.mark.parametrize("task", ["kind", "map"])
def test_the_scale_of_a_loss_does_not_matter(task: str) -> None:
    tasks = two_tasks()
    loss = tasks[task].loss

    def louder(outputs: Any, batch: Batch) -> Tensor:
        found = loss(outputs, batch)
        assert found is not None
        return 1000 * found

    plan = taskprune.prune(two_task_net(), tasks, 0.4, data=batches(3)).plan
    scaled = {**tasks, task: replace(tasks[task], loss=louder)}
    found = taskprune.prune(two_task_net(), scaled, 0.4, data=batches(3)).plan
    # The rationale holds the scores themselves, which rounding moves a little.
    assert (found.drop, found.costs) == (plan.drop, plan.costs)


def test_pruning_twice_composes() -> None:
    net, data = two_task_net(), batches(2)
    first = taskprune.prune(net, two_tasks(), 0.2, data=data, compensate=False)
    second = taskprune.prune(first.model, two_tasks(), 0.25, data=data, compensate=False)
    both = compose(first.plan, second.plan)
    at_once = taskprune.apply_plan(net, both, example_inputs=data[0][0])
    assert same_weights(at_once, second.model)
    assert both.costs["params"] == (first.plan.costs["params"][0], second.plan.costs["params"][1])


# -- what was asked for is reached -----------------------------------------------------------------

NETS: dict[str, Callable[[], nn.Module]] = {
    "two tasks": lambda: TwoTaskNet(64),
    "plain": lambda: Plain(width=128),
    "dense": Dense,
}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("ratio", [0.05, 0.327, 0.6])
def test_the_ratio_is_reached(make: Callable[[], nn.Module], ratio: float) -> None:
    net = randomise_(make(), 3)
    result = taskprune.prune(net, None, ratio, example_inputs=images(2), importance="magnitude")
    before = sum(p.numel() for p in net.parameters())
    after = sum(p.numel() for p in result.model.parameters())
    assert ratio <= 1 - after / before <= ratio + 0.005
    assert result.report.costs["params"] == (before, after)
    assert result.report.removed("params") == 1 - after / before


def test_a_budget_of_multiply_adds_is_reached() -> None:
    net = two_task_net(width=32)
    result = taskprune.prune(net, two_tasks(), data=batches(2), budget=Budget(macs=0.5))
    before, after = result.report.costs["macs"]
    assert 0.49 <= after / before <= 0.5


def test_multiply_adds_are_of_one_sample() -> None:
    reports = [
        taskprune.prune(
            Plain(), None, 0.3, example_inputs=images(n), importance="magnitude"
        ).report.costs["macs"]
        for n in (1, 4)
    ]
    assert reports[0][0] == reports[1][0]


def test_frozen_parameters_go_like_any_others() -> None:
    net = two_task_net()
    for part in (net.stem, net.norm, net.inner, net.outer):
        part.requires_grad_(False)
    result = taskprune.prune(net, two_tasks(), 0.4, data=batches(2))
    assert result.plan.kept["inner"] < 32
    assert isinstance(result.model, TwoTaskNet)
    assert not any(p.requires_grad for p in result.model.inner.parameters())
    assert all(p.requires_grad for p in result.model.kind.parameters())


def test_protected_modules_keep_their_channels() -> None:
    result = taskprune.prune(
        two_task_net(),
        two_tasks(),
        0.3,
        data=batches(2),
        settings=PruneSettings(protect=["inner", nn.Linear]),
    )
    assert isinstance(result.model, TwoTaskNet)
    assert result.model.inner.out_channels == 32
    assert result.model.kind[0].out_features == 20
    assert {line.kind for line in result.report.frozen} >= {"user"}


@pytest.mark.parametrize("one", ["inner", nn.Linear])
def test_a_single_protected_module_needs_no_list(one: Any) -> None:
    plans = [
        taskprune.prune(
            two_task_net(),
            None,
            0.05,
            example_inputs=images(2),
            importance="magnitude",
            settings=PruneSettings(protect=p),
        ).plan
        for p in (one, [one])
    ]
    assert plans[0] == plans[1]


def test_safety_holds() -> None:
    safety = Safety(max_removed=0.5, round_to=4, protected_quantile=1.0)
    result = taskprune.prune(two_task_net(), two_tasks(), 0.3, data=batches(2), safety=safety)
    for decision in result.plan.groups:
        assert decision.n_kept >= 0.5 * decision.n_channels
