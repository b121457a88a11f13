"""Gate and curvature criteria against gates that really multiply, and entry-by-entry formulas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import (
    FIRST,
    SECOND,
    TRUNK,
    TwoTaskNet,
    batches,
    two_task_groups,
    two_task_net,
    two_tasks,
)
from torch import Tensor, nn
from torch.nn import functional as F

from taskprune.calling.task import Task
from taskprune.coupling import couple
from taskprune.errors import InputError
from taskprune.graph import trace
from taskprune.importance import (
    DisparseImportance,
    GroupFisherImportance,
    ObdImportance,
    TaylorGateImportance,
    score,
)

READERS = {TRUNK: ("square", "first.0", "second.0"), FIRST: ("first.2",), SECOND: ("second.2",)}
Slopes = dict[str, list[Tensor]]


@contextmanager
def gated(net: nn.Module, group: str, gates: list[Tensor]) -> Iterator[None]:
    """Multiply what each reader of the group gets by a gate per sample and channel."""
    handles = []
    for path, gate in zip(READERS[group], gates, strict=True):

        def multiply(module: nn.Module, args: Any, gate: Tensor = gate) -> Any:
            x = args[0]
            return (x * gate.reshape(*gate.shape, *[1] * (x.ndim - 2)),)

        handles.append(net.get_submodule(path).register_forward_pre_hook(multiply))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def slopes(net: TwoTaskNet, group: str, batch: Any) -> Tensor:
    """Slope of the summed loss by each gate. Shape [readers, samples, channels]."""
    net.eval()
    width = {TRUNK: 8, FIRST: 6, SECOND: 5}[group]
    gates = [torch.ones(len(batch[0]), width, requires_grad=True) for _ in READERS[group]]
    with gated(net, group, gates):
        outputs = net(batch[0])
        losses = [task.loss(outputs, batch) for task in two_tasks().values()]
    total = losses[0] + losses[1]  # type: ignore[operator]
    return torch.stack(torch.autograd.grad(total, gates)).double()


@pytest.mark.parametrize("group", [TRUNK, FIRST, SECOND])
def test_a_gate_of_one_batch_has_the_slope_of_a_gate_that_multiplies(group: str) -> None:
    net, data = two_task_net(), batches(3)
    found = score(
        net, two_task_groups(net), two_tasks(), data, importance=TaylorGateImportance()
    ).total[group]
    expected = torch.stack([slopes(net, group, b).sum((0, 1)).square() for b in data]).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("group", [TRUNK, FIRST, SECOND])
@pytest.mark.parametrize("criterion", ["fisher", "group_fisher"])
def test_fisher_squares_the_slopes_of_single_samples(group: str, criterion: str) -> None:
    net, data = two_task_net(), [*batches(2, size=2), *batches(1, size=3, seed=5)]
    importance: Any = "fisher" if criterion == "fisher" else GroupFisherImportance(per_memory=False)
    found = score(net, two_task_groups(net), two_tasks(), data, importance=importance)
    total = torch.zeros(8 if group == TRUNK else len(found.total[group]), dtype=torch.float64)
    for batch in data:
        own = slopes(net, group, batch) * len(batch[0])
        squares = own.square().sum(0) if criterion == "fisher" else own.sum(0).square()
        total += squares.sum(0)
    torch.testing.assert_close(found.total[group], total / (2 * 7), rtol=1e-4, atol=1e-12)


def test_group_fisher_is_divided_by_the_memory_of_distinct_tensors() -> None:
    net, data = two_task_net(), batches(2)
    plain, divided = (
        score(
            net,
            two_task_groups(net),
            two_tasks(),
            data,
            importance=GroupFisherImportance(per_memory=per_memory),
        ).total
        for per_memory in (False, True)
    )
    # `square` reads one 8 x 8 map, `second.0` its sum with the residual, `first.0` the pooled one.
    torch.testing.assert_close(plain[TRUNK], 129 * divided[TRUNK])
    torch.testing.assert_close(plain[SECOND], 64 * divided[SECOND])


class Folding(nn.Module):
    """Grouped and transposed convolutions, a flatten, and tokens folded into the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.tokens = nn.Linear(4, 6)
        self.head = nn.Linear(6 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.relu(self.grouped(F.relu(self.stem(x)))))
        tokens = F.relu(self.tokens(F.relu(x).flatten(2).transpose(1, 2).reshape(-1, 4)))
        y: Tensor = self.head(tokens.reshape(x.shape[0], -1))
        return y


def test_the_fisher_of_single_samples_is_the_squared_gate_slope_of_batches_of_one() -> None:
    torch.manual_seed(0)
    net = Folding().double()
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    groups = couple(trace(net, x))
    assert len(groups) >= 3
    tasks = {"y": Task(lambda outputs, _: outputs.square().sum(1).mean())}
    fisher = score(net, groups, tasks, [x], importance=GroupFisherImportance(per_memory=False))
    taylor = score(net, groups, tasks, list(torch.split(x, 1)), importance="taylor_gate")
    for group in groups:
        torch.testing.assert_close(fisher.total[group.name], taylor.total[group.name] / 2)


def test_samples_that_cannot_be_told_apart_are_refused() -> None:
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.two(F.relu(self.one(x.transpose(0, 1)))).mean(0)
            return y

    net, x = SequenceFirst(), torch.rand(2, 5, 3)
    groups = couple(trace(net, x))
    tasks = {"y": Task(lambda outputs, _: outputs.square().mean())}
    with pytest.raises(InputError, match=r"first dim.*`two`.*2 samples.*taylor_gate"):
        score(net, groups, tasks, [x], importance="fisher")


def test_fisher_leaves_no_hooks() -> None:
    net = two_task_net()
    score(net, two_task_groups(net), two_tasks(), batches(1), importance="fisher")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


def test_obd_is_half_the_squared_weights_times_mean_squared_gradients() -> None:
    net, data = two_task_net(), batches(3)
    groups = two_task_groups(net)
    found = score(net, groups, two_tasks(), data, importance=ObdImportance()).total[SECOND]
    expected = torch.zeros(5, dtype=torch.float64)
    parameters = dict(net.named_parameters())
    for batch in data:
        outputs = net.eval()(batch[0])
        losses = [task.loss(outputs, batch) for task in two_tasks().values()]
        gradients = torch.autograd.grad(losses[0] + losses[1], list(parameters.values()))  # type: ignore[operator]
        for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
            for member in groups[SECOND].members:
                if member.name == name:
                    rest = [d for d in range(p.ndim) if d != member.dim]
                    own = (p * gradient).square().detach().double()
                    expected += own.sum(rest) if rest else own
    torch.testing.assert_close(found, expected / 6, rtol=1e-4, atol=1e-12)


def test_unanimity_holds_for_the_votes_of_every_share() -> None:
    net, data = two_task_net(), batches(3)
    groups = two_task_groups(net)
    found = score(net, groups, two_tasks(), data, importance=DisparseImportance())
    importance = score(net, groups, two_tasks(), data)  # per task: the same squared effects
    total = torch.cat([found.total[g.name] for g in groups])
    rows = torch.cat([importance.per_task[g.name] for g in groups], dim=1).numpy()
    n_channels = rows.shape[1]
    for n_kept in (3, 8, 15):
        kept = np.zeros(n_channels, dtype=bool)
        for row in rows:
            # Only channels that the task depends on get its vote.
            kept[[c for c in np.argsort(-row)[:n_kept] if row[c] > 0]] = True
        gone = total < (n_channels - n_kept) / n_channels
        np.testing.assert_array_equal(~kept, gone.numpy())


@pytest.mark.parametrize("criterion", ["taylor_gate", "fisher", "group_fisher", "obd", "disparse"])
def test_criteria_that_need_data_say_so(criterion: str) -> None:
    net = two_task_net()
    with pytest.raises(InputError, match="needs the tasks' losses"):
        score(net, two_task_groups(net), importance=criterion)
    with pytest.raises(InputError, match="calibration batch"):
        score(net, two_task_groups(net), two_tasks(), importance=criterion)
