"""Channels that cost nothing are found, all of them and no others, and cost nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import taskprune
from taskprune import Budget, PruneSettings, Safety, Task
from taskprune.allocation import dependence, find_free, input_rows
from taskprune.coupling import couple
from taskprune.front.job import Examined, Job, at_work, chosen_importance, examine
from taskprune.graph import trace
from taskprune.importance import output_tasks, score
from taskprune.report.record import PruneReport
from taskprune.testing import unchanged

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
        importance=settings.pop("importance", chosen_importance(None, tasks or None)),
        compensate=True,
    )
    with at_work("Looking") as say:
        return examine(job, model, say, surveys=True)


def assert_planted(
    free: Mapping[str, set[int]], planted: dict[str, list[tuple[set[int], int]]]
) -> None:
    assert set(free) == set(planted)
    for name, alike in planted.items():
        own = free[name]
        assert [len(own & channels) for channels, _ in alike] == [n for _, n in alike], (name, own)
        assert own <= set().union(*(channels for channels, _ in alike)), (name, own)


def distance(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Return the largest difference of any output, in units of what it varies by."""
    with torch.no_grad():
        first, second = one.eval()(x), other.eval()(x)
    return max(float((first[n] - second[n]).abs().max() / second[n].std()) for n in second)


@pytest.mark.parametrize(("tasks", "importance"), [(TASKS, None), (None, "magnitude")])
def test_only_they_go_and_no_output_notices(tasks: Any, importance: str | None) -> None:
    model = made(Planted)
    before = copy.deepcopy(model.state_dict())
    result = taskprune.prune(
        model, tasks, budget="free", data=batches(), importance=importance, safety=FREE
    )
    told = result.report.free
    assert told is not None
    dropped = {d.name: set(d.drop) for d in result.plan.groups if d.drop}
    assert {name: len(own) for name, own in dropped.items()} == told.channels
    assert_planted(dropped, Planted.free)
    for data in (batches(), batches(seed=1)):
        assert max(distance(result.model, model, x) for x in data) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert told.dropped == sum(told.channels.values()) == 10
    assert told.params == pytest.approx(result.report.removed("params"))
    assert told.macs == pytest.approx(result.report.removed("macs"))
    assert f"{told.macs:.1%} of the multiply-adds" in str(result)
    assert str(told) in result.to_html()
    assert "4 of them cost nothing" in str(result.plan.explain("stem"))
    assert PruneReport.from_json(result.report.to_json()) == result.report


def test_they_go_first_and_other_scores_stay() -> None:
    model = made(Planted)
    seen = examined(model, batches(), TASKS)
    plain = score(model, seen.groups, TASKS, batches())
    for group in seen.groups:
        free = set(seen.free.channels.get(group.name, np.empty(0)).tolist())
        stays = [c for c in range(group.n_channels) if c not in free]
        for part in ("total", "per_task"):
            now, then = getattr(seen.scores[group.name], part), getattr(plain[group.name], part)
            assert torch.equal(now[..., stays], then[..., stays])
        assert all(float(seen.scores[group.name].total[c]) <= 0 for c in free)
    for ratio, steps in ((0.6, 1), (0.6, 3)):
        result = taskprune.prune(
            model, TASKS, ratio, data=batches(), safety=FREE, settings=PruneSettings(steps=steps)
        )
        dropped = {d.name: set(d.drop) for d in result.plan.groups}
        assert all(set(own.tolist()) <= dropped[n] for n, own in seen.free.channels.items())


class Plain(nn.Module):
    """Nothing is free here."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"dense": self.out(F.silu(self.stem(x)))}


def test_without_free_channels_nothing_changes() -> None:
    model = made(Plain)
    seen = examined(model, batches())
    assert not seen.free.channels
    plain = score(
        model, seen.groups, output_tasks(model, batches()[0]), batches(), importance="output_change"
    )
    for group in seen.groups:
        assert torch.equal(seen.scores[group.name].total, plain[group.name].total)
    result = taskprune.prune(model, budget="free", data=batches())
    assert not any(d.drop for d in result.plan.groups)
    assert result.report.free is not None
    assert "None of 12 channels" in str(result.report.free)
    assert "nothing" not in str(result)


class ReadElsewhere(nn.Module):
    """Constant channels that something else reads than a weight with a bias."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1, bias=how != "no bias")
        norms = {"layer norm": nn.LayerNorm(8), "group norm": nn.GroupNorm(2, 8)}
        self.norm = norms.get(how, nn.Identity())
        silent(self.stem, 2, 0.8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        if self.how == "layer norm":
            x = x.movedim(1, -1)
        x = self.norm(x)
        if self.how == "layer norm":
            x = x.movedim(-1, 1)
        made = {"dense": self.out(x)}
        if self.how == "sum":
            made["sum"] = x.sum(1)
        return made


@pytest.mark.parametrize("how", ["", "no bias", "sum", "layer norm", "group norm"])
def test_what_something_else_reads_is_not_free(how: str) -> None:
    free = examined(made(lambda: ReadElsewhere(how)), batches()).free.channels
    assert {n: own.tolist() for n, own in free.items()} == ({"stem": [2]} if not how else {})


class Shared(nn.Module):
    """Two convolutions before one norm: a constant of either would go into the mean of both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4)
        self.one, self.other = (nn.Conv2d(8, 4, 1, bias=False) for _ in range(2))
        silent(self.stem, 2, 0.8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        return {"one": self.norm(self.one(x)), "other": self.norm(self.other(x.square()))}


def test_a_norm_that_others_pass_takes_no_constant() -> None:
    assert not examined(made(Shared), batches()).free.channels


class ThereAndBack(nn.Module):
    """A weight that is read along both of its dims."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.code = nn.Conv2d(3, 9, 1), nn.Conv2d(9, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        return x + F.conv_transpose2d(F.silu(self.code(x)), self.code.weight, padding=1)


def test_what_is_read_along_two_dims_is_left_alone() -> None:
    model, data = made(ThereAndBack), batches(2)
    groups = couple(trace(model, data[0]))
    assert len(groups)
    assert not find_free(model, groups, data).channels


class Attends(nn.Module):
    """Queries and keys of which one channel is constant; nothing but their product reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(3, 8), nn.Linear(8, 2)
        self.query, self.key = nn.Linear(8, 6), nn.Linear(8, 6)
        silent(self.query, 1, 0.7)
        mixture(self.embed, 3, {2: 2.0})

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x.flatten(2).mT))
        made: Tensor = self.out(torch.softmax(self.query(x) @ self.key(x).mT, -1) @ x)
        return made


def test_what_is_multiplied_with_each_other_is_not_free() -> None:
    seen = examined(made(Attends), batches())
    assert seen.groups["query"].contracted
    assert not seen.groups["embed"].contracted
    assert {name: len(own) for name, own in seen.free.channels.items()} == {"embed": 1}


class Pooled(nn.Module):
    """As many rows as images: fewer than channels, which are linear in each other by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 96, 3), nn.Linear(96, 2)
        silent(self.stem, 0, -1.0)
        silent(self.stem, 1, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(F.relu(self.stem(x)).mean((2, 3)))
        return made


def test_behind_few_rows_only_what_is_constant_is_free() -> None:
    free = examined(made(Pooled), batches()).free.channels
    assert {name: own.tolist() for name, own in free.items()} == {"stem": [0, 1]}


class Spot(nn.Module):
    """A channel that is silent but where a picture has a single bright spot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        with torch.no_grad():
            self.stem.get_parameter("bias")[4] = -30.0
            self.stem.weight[4] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(F.relu(self.stem(x)))
        return made


def test_a_single_spot_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(4, 3, 64, 64, generator=generator) for _ in range(2)]
    model = made(Spot)
    assert examined(model, data).free.channels["stem"].tolist() == [4]
    data[1][2, :, 61, 37] = 40.0
    assert not examined(model, data).free.channels


def test_the_model_is_as_it_was_also_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(Planted).train()
    model.norm.requires_grad_(False)
    for place in ("_solved", "maybe_dependent", None):
        with monkeypatch.context() as broken, unchanged(model):
            if place is None:
                taskprune.prune(model, TASKS, budget="free", data=batches(2))
            else:
                module = {"_solved": dependence, "maybe_dependent": input_rows}[place]
                broken.setattr(module, place, _fail)
                with pytest.raises((RuntimeError, taskprune.errors.TraceError), match="half-way"):
                    taskprune.prune(model, TASKS, budget="free", data=batches(2))


def _fail(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("half-way")


@pytest.mark.parametrize(
    "bad",
    [
        {"data": None, "example_inputs": torch.zeros(1, 3, 10, 10), "importance": "magnitude"},
        {"compensate": False},
        {"settings": PruneSettings(steps=2)},
        {"ratio": 0.3},
    ],
)
def test_what_cannot_be_known_to_be_free_is_refused(bad: dict[str, Any]) -> None:
    given: dict[str, Any] = {"data": batches(1), **bad}
    with pytest.raises(taskprune.errors.InputError, match=r"free|Found both"):
        taskprune.prune(made(Planted), budget="free", **given)
