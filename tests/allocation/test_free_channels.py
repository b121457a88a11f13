"""Channels that cost nothing are found, all of them and no others, and cost nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import taskprune
from taskprune import Budget, Safety, Task
from taskprune.allocation.free_channels import FreeChannels
from taskprune.cost import count_params
from taskprune.coupling import couple
from taskprune.front.job import Examined, Job, at_work, examine
from taskprune.graph import trace

FREE = Safety(min_channels=1, max_removed=1.0, max_removed_private=1.0, protected_quantile=1.0)


def silent(layer: nn.Module, channel: int, value: float) -> None:
    """Let a channel of a layer or norm say one thing whatever comes in."""
    with torch.no_grad():
        layer.get_parameter("weight")[channel] = 0
        layer.get_parameter("bias")[channel] = value


def mixture(layer: nn.Module, channel: int, of: dict[int, float]) -> None:
    """Let a channel of a layer be a sum of others."""
    with torch.no_grad():
        for own in layer.parameters():
            own[channel] = torch.stack([factor * own[c] for c, factor in of.items()]).sum(0)


class Planted(nn.Module):
    """Two tasks, and in each group channels that are free and others that only seem to be.

    ``stem``, through a norm and a rectifier into a padded convolution: 0 and 1 dead, 2 and 3
    constant, of which one can say the other but not the frame of zeros, 5 a multiple of 4.
    ``padded``, through a rectifier into 1x1: 0 dead, 1 constant, 3 as 2.
    ``mixed``, into both heads as it is: 5 and 6 sums of others.
    ``both``, read as it is and through a rectifier: 0 dead behind the latter alone; 1 and 2 equal
    but for a sign, so linear in each other before it alone; 3 dead everywhere.
    """

    free: ClassVar = {
        "stem": [({0, 1}, 2), ({2, 3}, 1), ({4, 5}, 1)],
        "padded": [({0, 1}, 2), ({2, 3}, 1)],
        "mixed": [({0, 1, 2, 5, 6}, 2)],
        "both": [({3}, 1)],
    }
    """``{group: [(channels, how many of them are free)]}``; no others are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.padded = nn.Conv2d(12, 10, 3, padding=1)
        self.mixed = nn.Conv2d(10, 9, 1)
        self.dense = nn.Conv2d(9, 2, 1)
        self.label = nn.Linear(9, 3)
        self.both = nn.Linear(9, 8)
        self.plain, self.rectified = nn.Linear(8, 3), nn.Linear(8, 3)
        for channel, value in ((0, -0.5), (1, 0.0), (2, 0.4), (3, 0.7)):
            silent(self.norm, channel, value)
        mixture(self.stem, 5, {4: 1.0})
        with torch.no_grad():
            for own in self.norm.parameters():
                own[4:] += torch.rand(8)
                own[5] = 2 * own[4]
        silent(self.padded, 0, -1.0)
        silent(self.padded, 1, 0.5)
        mixture(self.padded, 3, {2: 1.0})
        mixture(self.mixed, 5, {0: 1.0, 1: -2.0})
        mixture(self.mixed, 6, {2: 0.5, 5: 1.0})
        with torch.no_grad():
            self.both.bias[0] = -100.0
            self.both.bias[1] -= (
                self.eval().both(self.features(batches()[0]).mean((2, 3))).mean(0)[1]
            )
        mixture(self.both, 2, {1: -1.0})
        silent(self.both, 3, 0.0)

    def features(self, x: Tensor) -> Tensor:
        made: Tensor = self.mixed(F.relu(self.padded(F.relu(self.norm(self.stem(x))))))
        return made

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.features(x)
        y = self.both(x.mean((2, 3)))
        return {
            "dense": self.dense(x),
            "label": self.label(x.mean((2, 3))) + self.plain(y) + self.rectified(F.relu(y)),
        }


def batches(n: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 3, 10, 10, generator=generator) for _ in range(n)]


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


TASKS = {
    "dense": Task(lambda outputs, _: outputs["dense"].square().mean(), outputs="dense"),
    "label": Task(lambda outputs, _: outputs["label"].exp().mean(), outputs="label"),
}


def examined(model: nn.Module, data: list[Any], tasks: Any = None, **settings: Any) -> Examined:
    tasks = tasks or {}
    job = Job(
        tasks,
        Budget(params=0.9),
        data,
        importance=settings.pop("importance", "task_taylor" if tasks else "output_change"),
        compensate=True,
    )
    with at_work("Looking") as say:
        return examine(job, model, say, surveys=True)


def assert_planted(free: FreeChannels, planted: dict[str, list[tuple[set[int], int]]]) -> None:
    assert set(free.channels) == set(planted)
    for name, alike in planted.items():
        own = set(free.channels[name].tolist())
        assert [len(own & channels) for channels, _ in alike] == [n for _, n in alike], (name, own)
        assert own <= set().union(*(channels for channels, _ in alike)), (name, own)


def left(model: nn.Module, free: FreeChannels) -> dict[str, int]:
    """Return how many channels of each group stay without those that are free."""
    groups = couple(trace(model, batches()[0]))
    return {g.name: g.n_channels - len(free.channels.get(g.name, ())) for g in groups}


def distance(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Return the largest difference of any output, in units of what it varies by."""
    with torch.no_grad():
        first, second = one.eval()(x), other.eval()(x)
    return max(float((first[n] - second[n]).abs().max() / second[n].std()) for n in second)


@pytest.mark.parametrize("tasks", [None, TASKS], ids=["outputs", "tasks"])
def test_what_is_planted_is_found_and_nothing_else(tasks: Any) -> None:
    model = made(Planted)
    assert_planted(examined(model, batches(), tasks).free, Planted.free)


@pytest.mark.parametrize("tasks", [None, TASKS], ids=["outputs", "tasks"])
@pytest.mark.parametrize("importance", [None, "magnitude", "random"])
def test_they_go_first_and_no_output_notices(tasks: Any, importance: str | None) -> None:
    model = made(Planted)
    before = copy.deepcopy(model.state_dict())
    free = examined(model, batches()).free
    params = count_params(examined(model, batches()).groups, left(model, free))
    result = taskprune.prune(
        model,
        tasks,
        budget=Budget(params=params),
        data=batches(),
        importance=importance,
        safety=FREE,
    )
    dropped = {d.name: set(d.drop) for d in result.plan.groups if d.drop}
    assert dropped == {name: set(own.tolist()) for name, own in free.channels.items()}
    for data in (batches(), batches(seed=1)):
        assert max(distance(result.model, model, x) for x in data) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
