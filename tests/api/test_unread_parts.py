"""What no traced forward runs is named, and what it could read stays whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from front_nets import images
from torch import Tensor, nn
from torch.nn import functional as F

import taskprune
from taskprune import Budget, PruneSettings, Safety, Task
from taskprune.errors import InfeasibleBudgetError, InputError
from taskprune.testing import randomise_


class Counting(nn.Module):
    """A branch that starts after some epochs reads what the trunk's code handles."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 40, 3, padding=1)
        self.head, self.late = nn.Conv2d(40, 5, 1), nn.Conv2d(12, 4, 1)
        self.epoch = 0

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).relu()
        y = self.head(self.wide(x).relu())
        return (y, self.late(x)) if self.epoch >= 5 else y


class Expert(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Any:
        return self.outer(self.inner(x).relu())


class Experts(nn.Module):
    """Each token goes to the expert that its first feature asks for; expert 2 gets none."""

    def __init__(self, width: int = 12, inner: int = 32) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, width), nn.Linear(width, 3)
        self.experts = nn.ModuleList(Expert(width, inner) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        choice = x[:, 0].round().long()
        x = self.embed(x)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            if (choice == number).any():
                y[choice == number] = expert(x[choice == number])
        return self.head(x + y)


class TwoDoors(nn.Module):
    """A second entry point reads the first stage of the backbone, flattened and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 36, 3, padding=1), nn.ReLU(), nn.Conv2d(36, 24, 1)),
        )
        self.head = nn.Linear(24, 5)
        self.projection = nn.Linear(8 * 16, 7)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.backbone(x).mean((2, 3)))

    def describe(self, x: Tensor) -> Any:
        return self.projection(F.adaptive_avg_pool2d(self.backbone[0](x), 4).flatten(1))


class OneTaskACall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 1))
        self.heads = nn.ModuleDict({"kind": nn.Conv2d(16, 5, 1), "map": nn.Conv2d(16, 1, 1)})

    def forward(self, x: Tensor, task: str) -> Any:
        return self.heads[task](self.trunk(x).relu())


def tokens() -> Tensor:
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    x[:, 0] = torch.arange(10) % 2
    return x


def pruned(net: nn.Module, ratio: float, example: Any, **keywords: Any) -> taskprune.PruneResult:
    randomise_(net, 0)
    return taskprune.prune(
        net, None, ratio, example_inputs=example, importance="magnitude", **keywords
    )


def test_a_branch_behind_a_counter_goes_on_working() -> None:
    net = Counting()
    result = pruned(net, 0.4, images(2))
    smaller: Any = result.model
    smaller.epoch = net.epoch = 5
    assert [y.shape for y in smaller(images(2))] == [y.shape for y in net(images(2))]
    assert result.plan.kept["wide"] < 40


def test_an_expert_without_tokens_goes_on_working() -> None:
    result = pruned(Experts(), 0.3, tokens())
    assert result.report.untraced == tuple(
        f"experts.2.{part}" for part in ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
    )
    x = tokens()
    x[:, 0] = 2
    assert result.model(x).shape == (10, 3)


def test_a_second_entry_point_goes_on_working() -> None:
    result = pruned(TwoDoors(), 0.3, images(2))
    assert result.model.describe(images(2)).shape == (2, 7)  # type: ignore[operator]
    assert result.plan.kept["backbone.1.0"] < 36


def test_what_no_forward_reads_is_named_with_the_way_out(caplog: pytest.LogCaptureFixture) -> None:
    result = pruned(Counting(), 0.4, images(2))
    (note,) = result.report.notes
    assert "`late.weight`, `late.bias`" in note
    assert "`stem`" in note
    assert "forward=" in note
    assert note in caplog.messages
    held = {line.group: line.limit for line in result.report.limits}
    assert held["stem"] == "unread parameters"
    with pytest.raises(InfeasibleBudgetError, match=r"late\.weight.*forward="):
        pruned(Counting(), 0.95, images(2))


def test_strict_refuses_what_no_forward_reads() -> None:
    with pytest.raises(InputError, match=r"late\.weight.*forward="):
        pruned(Counting(), 0.4, images(2), settings=PruneSettings(strict=True))


def test_what_is_declared_unused_holds_nothing() -> None:
    result = pruned(Counting(), 0.6, images(2), safety=Safety(unused="late"))
    assert result.plan.kept["stem"] < 12
    assert "declared unused" in result.report.notes[0]
    with pytest.raises(InputError, match="unused"):
        Safety(unused=(3,))  # type: ignore[arg-type]


def test_steps_hold_the_same_groups() -> None:
    result = pruned(Counting(), 0.5, images(2), settings=PruneSettings(steps=3))
    assert result.plan.kept["stem"] == 12


def late(model: Any, x: Any) -> Any:
    model.epoch = 5
    return model(x)


@pytest.mark.parametrize("as_names", [False, True])
def test_several_forwards_are_united(as_names: bool) -> None:
    calls = [lambda model, x: model(x, "kind"), lambda model, x: model(x, "map")]
    forward: Any = dict(zip(("kind", "map"), calls, strict=True)) if as_names else calls
    net = OneTaskACall()
    result = pruned(net, 0.4, images(2), forward=forward)
    assert not result.report.untraced
    assert result.model(images(2), "map").shape == (2, 1, 8, 8)
    assert result.plan.kept["trunk.2"] < 16
    assert result.report.verification is not None
    paths = {error.path for error in result.report.verification.outputs}
    assert paths == ({"kind", "map"} if as_names else {"0", "1"})


def test_forwards_that_set_what_a_branch_asks_for_leave_the_model_as_it_was() -> None:
    net = Counting()
    result = pruned(net, 0.5, images(2), forward=[late, lambda model, x: model(x)])
    assert net.epoch == 0
    smaller: Any = result.model
    assert smaller.epoch == 0
    smaller.epoch = 5
    assert smaller(images(2))[1].shape == (2, 4, 8, 8)
    assert result.plan.kept["stem"] < 12


def test_the_stages_take_several_forwards_as_well() -> None:
    net = randomise_(OneTaskACall(), 0)
    forward: Any = {"kind": lambda m, x: m(x, "kind"), "map": lambda m, x: m(x, "map")}
    graph = taskprune.trace(net, images(2), forward=forward, tasks={"kind": "kind", "map": "map"})
    assert graph.tasks == {"kind": ("kind",), "map": ("map",)}
    groups = taskprune.couple(graph, strict=True)
    assert {group.name: group.tasks for group in groups}["trunk.2"] == {"kind", "map"}
    scores = taskprune.score(net, groups, importance="magnitude")
    plan = taskprune.solve(groups, scores, Budget.from_ratio(0.3))
    smaller = taskprune.apply_plan(net, plan, example_inputs=images(2), forward=forward)
    assert smaller(images(2), "map").shape == (2, 1, 8, 8)


def test_bad_forwards_are_refused() -> None:
    bad: list[Any] = [[], {}, ["map"], 3]
    for forward in bad:
        with pytest.raises(InputError, match="forward"):
            pruned(OneTaskACall(), 0.3, images(2), forward=forward)


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("own_loaders", [False, True])
def test_batches_of_one_task_each_are_united(own_loaders: bool, declared: bool) -> None:
    def loss_of(task: str) -> Any:
        def loss(outputs: Any, batch: Any) -> Any:
            return outputs[task].square().mean() if batch[0] == task else None

        return loss

    tasks = {
        task: Task(loss_of(task), outputs=task if declared else None) for task in ("kind", "map")
    }
    kind, map_ = ([(task, images(4, seed=n)) for n in (1, 2)] for task in ("kind", "map"))
    data: Any = {"kind": kind, "map": map_} if own_loaders else kind + map_
    result = taskprune.prune(
        randomise_(OneTaskACall(), 0),
        tasks,
        0.3,
        data=data,
        forward=lambda model, batch: {batch[0]: model(batch[1], batch[0])},
    )
    assert result.groups["trunk.2"].tasks == {"kind", "map"}
    assert result.report.verification is not None
    assert len(result.report.verification.outputs) == 2
    assert result.model(images(2), "map").shape == (2, 1, 8, 8)
