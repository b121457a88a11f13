"""Scores without labels: the squared change of the outputs, by random projections."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hand_made import TRUNK, batches, two_task_groups, two_task_net, two_tasks
from torch import Tensor, nn

import taskprune
from taskprune.calling.task import Task
from taskprune.coupling import couple
from taskprune.errors import InputError, LossError
from taskprune.graph import trace
from taskprune.importance import (
    ChannelScores,
    OutputChangeImportance,
    TaylorImportance,
    output_tasks,
    score,
)


def linear_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4)).double()


def scores_of(
    net: nn.Module, data: list[Any], call: Callable[[Any], Any] = lambda outputs: outputs
) -> ChannelScores:
    groups = couple(trace(net, data[0]))
    return score(
        net,
        groups,
        data=data,
        importance="output_change",
        forward=lambda model, batch: call(model(batch)),
    )


def test_on_a_linear_net_it_is_the_squared_change_of_the_output() -> None:
    net = linear_net()
    x = torch.randn(16, 5, dtype=torch.float64)
    n_draws = 2000
    found = scores_of(net, [x] * n_draws)["0"].total
    first, last = net
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        hidden, variance = first(x), net(x).var(correction=0)
        changes = torch.stack(
            [(hidden[:, [c]] * last.weight[:, c]).square().mean() / variance for c in range(6)]
        )
    # What makes a channel and what reads it are zeroed together, each of which removes it all.
    error = (found / (4 * changes) - 1).abs()
    assert float(error.max()) < 5 * (2 / n_draws) ** 0.5


@pytest.mark.parametrize("change", [lambda o: 1000 * o, lambda o: o + 7, lambda o: o / -3 - 1])
def test_factors_and_constants_in_an_output_change_nothing(change: Any) -> None:
    data = list(torch.randn(3, 8, 5, dtype=torch.float64))
    plain, other = scores_of(linear_net(), data), scores_of(linear_net(), data, change)
    torch.testing.assert_close(other["0"].total, plain["0"].total)


def test_a_channel_that_reaches_no_output_scores_0() -> None:
    net = linear_net()
    last = net[1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight[:, 2] = 0
    found = scores_of(net, list(torch.randn(2, 8, 5, dtype=torch.float64)))["0"].total
    assert found[2] == 0
    assert int((found > 0).sum()) == 5


def test_the_same_call_gives_the_same_scores_and_leaves_the_generator_alone() -> None:
    net, data = two_task_net(), batches()
    before = torch.get_rng_state()
    one, same = (
        score(net, two_task_groups(net), data=data, importance="output_change") for _ in "ab"
    )
    other = score(net, two_task_groups(net), data=data, importance=OutputChangeImportance(seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[TRUNK].per_task, same[TRUNK].per_task)
    assert not torch.equal(one[TRUNK].per_task, other[TRUNK].per_task)


def refuse(_outputs: Any, _batch: Any) -> Tensor:
    raise AssertionError("a loss is not looked at")


def test_tasks_are_scored_by_the_outputs_they_declare() -> None:
    net, data = two_task_net(), batches()
    tasks = {"a": Task(refuse, outputs="first"), "b": Task(refuse, outputs="second", weight=2.0)}
    found = score(net, two_task_groups(net), tasks, data, importance="output_change")
    plain = score(net, two_task_groups(net), data=data, importance="output_change")
    assert (found.tasks, plain.tasks) == (("a", "b"), ("first", "second"))
    factors = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    torch.testing.assert_close(found[TRUNK].per_task, factors * plain[TRUNK].per_task)
    torch.testing.assert_close(found[TRUNK].total, found[TRUNK].per_task.sum(0))
    assert float(found["first.0"].per_task[1].max()) == 0


@pytest.mark.parametrize("own_loaders", [False, True])
def test_tasks_that_declare_none_are_scored_by_what_their_loss_depends_on(
    own_loaders: bool,
) -> None:
    net, data = two_task_net(), batches()
    given: Any = dict.fromkeys(two_tasks(), data[:2]) if own_loaders else data
    found = score(net, two_task_groups(net), two_tasks(), given, importance="output_change")
    seen = [data[0], data[0], data[1], data[1]] if own_loaders else data
    plain = score(net, two_task_groups(net), data=seen, importance="output_change")
    assert torch.equal(found[TRUNK].per_task, plain[TRUNK].per_task)


class Various(nn.Module):
    """Outputs of all kinds, the chosen of several and their places among them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.head = nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.head(torch.relu(self.stem(x)))
        top = y.topk(2, dim=1)
        return {
            "top": (top.values, top.indices),
            "again": [top.values],
            "masked": y.masked_fill(y < 0, float("-inf")),
            "detached": y.detach(),
            "flat": self.scale.expand(3, 3) * 0.3,
            "none": None,
            "all": y.sigmoid(),
        }


def test_every_output_that_can_be_measured_is_a_task(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net, x = Various(), torch.randn(8, 5)
    with caplog.at_level(logging.WARNING, logger="taskprune"):
        tasks = output_tasks(net, x)
    assert {name: task.outputs for name, task in tasks.items()} == {
        name: name for name in ("top.0", "masked", "all")
    }
    for told in ("`top.1` (no floating", "`detached` (no gradient", "`flat` (constant"):
        assert told in caplog.text
    found = score(net, couple(trace(net, x)), data=[x] * 4, importance="output_change")
    assert found.tasks == tuple(tasks)
    assert bool((found["stem"].per_task > 0).any(1).all())


@pytest.mark.parametrize(
    "batch",
    [torch.randn(4, 5), (torch.randn(4, 5), "labels"), {"x": torch.randn(4, 5)}],
    ids=["tensor", "with labels", "keywords"],
)
def test_batches_of_every_form_are_taken(batch: Any) -> None:
    net = Various()
    assert list(output_tasks(net, batch)) == ["top.0", "masked", "all"]


def test_outputs_that_are_integers_alone_are_nothing_to_warn_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="taskprune"):
        output_tasks(linear_net(), torch.randn(3, 5).double(), forward=lambda m, x: m(x).topk(2))
    assert not caplog.records


def test_a_model_without_an_output_to_measure_is_refused() -> None:
    with pytest.raises(InputError, match=r"Found `output` \(no floating-point"):
        output_tasks(linear_net(), torch.ones(2, 5).double(), forward=lambda m, x: m(x).argmax(1))
    with pytest.raises(InputError, match=r"`output` \(constant.*more samples"):
        output_tasks(linear_net(), torch.ones(1, 5).double(), forward=lambda m, x: m(x)[:, 0])
    net = linear_net()
    groups = couple(trace(net, torch.ones(1, 5).double()))
    with pytest.raises(InputError, match="Expected at least one calibration batch"):
        score(net, groups, importance="output_change")
    with pytest.raises(LossError, match="Of `output` none is a floating-point"):
        score(
            net,
            groups,
            {"a": Task(refuse, outputs="output")},
            [torch.randn(2, 5).double()],
            importance="output_change",
            forward=lambda m, x: m(x).argmax(1),
        )


def test_a_constant_batch_says_nothing_about_its_output() -> None:
    data = list(torch.randn(3, 8, 5, dtype=torch.float64))
    groups = couple(trace(linear_net(), data[0]))
    nothing = torch.zeros_like(data[0])

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        outputs: Tensor = model(batch)
        return outputs * 0 if batch is nothing else outputs

    tasks = {"y": Task(refuse, outputs="output")}
    kinds = (data, [*data, nothing])
    one, other = (
        score(linear_net(), groups, tasks, own, importance="output_change", forward=forward)
        for own in kinds
    )
    assert (one.n_batches, other.n_batches) == (3, 4)
    assert torch.equal(one["0"].total, other["0"].total)


def test_prune_without_labels() -> None:
    net = two_task_net()
    data = [batch[0] for batch in batches()]
    result = taskprune.prune(
        net, output_tasks(net, data[0]), 0.3, data=data, importance="output_change"
    )
    assert result.report.removed("params") >= 0.3
    assert [line.task for line in result.report.tasks] == ["first", "second"]
    assert result.groups["first.0"].tasks == {"first"}


def test_a_task_of_an_output_works_with_other_criteria_as_well() -> None:
    net, data = two_task_net(), batches()
    first = {"first": output_tasks(net, data[0])["first"]}
    found = score(net, two_task_groups(net), first, data, importance=TaylorImportance())
    own = score(net, two_task_groups(net), data=data, importance="output_change")
    torch.testing.assert_close(found[TRUNK].total, own[TRUNK].per_task[0])
