"""The default criterion: losses and outputs in equal shares, each where the task looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hand_made import batches, first_loss, second_loss, two_task_groups, two_task_net, two_tasks
from torch import Tensor, nn

import taskprune
from taskprune import ChannelScores, Task, score
from taskprune.errors import InputError
from taskprune.importance import OutputChangeImportance, TaskChangeImportance

N = 64
"""Positions of an output, of which the loss of `watching` looks at one."""


class Independent(nn.Module):
    """Channel *c* of the hidden layer makes column *c* of the output, scaled by `reach[c]`."""

    def __init__(self, reach: Tensor) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 4, bias=False)
        self.out = nn.Linear(4, N, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.eye(4))
            self.out.weight.copy_(reach)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.hidden(x))
        return out


def hidden_scores(model: nn.Module, task: Task, importance: Any) -> Tensor:
    torch.manual_seed(0)
    data = [torch.randn(16, 4) for _ in range(16)]
    groups = taskprune.couple(taskprune.trace(model, data[0]))
    found = score(model, groups, {"task": task}, data, importance=importance)
    (group,) = found.groups.values()
    return group.total


def test_what_the_loss_does_not_look_at_does_not_outvote_what_it_does() -> None:
    reach = torch.zeros(N, 4)
    reach[0] = torch.tensor([1.0, 0.5, 0.25, 0.0])  # watched
    reach[1:, 3] = 1.0  # the background
    model = Independent(reach)
    watching = Task(lambda out, _: (out[:, 0] - 1).square().mean())
    plain = hidden_scores(model, watching, OutputChangeImportance())
    weighted = hidden_scores(model, watching, TaskChangeImportance(floor=0.01))
    assert int(plain.argmax()) == 3
    assert int(weighted.argmin()) == 3


def test_effects_that_cancel_in_the_loss_are_not_free() -> None:
    reach = torch.zeros(N, 4)
    reach[0], reach[1] = torch.tensor([1.0, 1.0, 0.0, 0.1]), torch.tensor([1.0, -1.0, 0.0, 0.1])
    model = Independent(reach)
    opposed = Task(lambda out, _: (out[:, 0] - out[:, 1] + 1).square().mean())
    taylor = hidden_scores(model, opposed, "task_taylor")
    found = hidden_scores(model, opposed, TaskChangeImportance())
    fewer = hidden_scores(model, opposed, TaskChangeImportance(outputs=0.1))
    assert float(taylor[0]) == pytest.approx(0.0, abs=1e-6 * float(taylor.max()))
    assert float(found[0]) > 0.05 * float(found.max())
    assert float(found[2]) == 0.0
    assert float(fewer[0]) == pytest.approx(0.1 * float(found[0]))


def scores(tasks: dict[str, Task]) -> ChannelScores:
    net = two_task_net()
    return score(net, two_task_groups(net), tasks, batches(3), importance="task_change")


def test_scales_of_losses_and_the_order_of_tasks_do_not_matter() -> None:
    expected = scores(two_tasks())
    scaled = {
        "second": Task(lambda o, b: 100 * second_loss(o, b) + 7),
        "first": Task(first_loss),
    }
    found = scores(scaled)
    for name, own in expected.groups.items():
        torch.testing.assert_close(found[name].total, own.total, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(found[name].per_task.flip(0), own.per_task, rtol=1e-5, atol=1e-9)


def test_each_task_has_two_shares_of_all_channels_and_tells_conflict_and_rises() -> None:
    tasks = two_tasks()
    tasks["second"] = replace(tasks["second"], weight=3.0)
    found = scores(tasks)
    sums = torch.stack([own.per_task.sum(1) for own in found.groups.values()]).sum(0)
    torch.testing.assert_close(sums, torch.tensor([2.0, 18.0], dtype=torch.float64))
    assert found.knows_conflict
    assert found.knows_losses


def test_a_loss_on_features_alone_is_scored_by_what_it_loses() -> None:
    net = two_task_net()
    features: list[Tensor] = []
    net.stem.register_forward_hook(lambda _m, _i, out: features.append(out))
    tasks = {"inner": Task(lambda _o, _b: features.pop().square().mean())}
    groups = two_task_groups(net)
    found = score(net, groups, tasks, batches(3), importance="task_change")
    taylor = score(net, groups, tasks, batches(3), importance="task_taylor")
    sums = sum(own.total.sum() for own in taylor.groups.values())
    for name, own in taylor.groups.items():
        torch.testing.assert_close(found[name].total, own.total / sums)


@pytest.mark.parametrize("changes", [{"floor": 0.0}, {"correlation": 2.0}, {"outputs": -0.1}])
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(changes))}` must"):
        TaskChangeImportance(**changes)
