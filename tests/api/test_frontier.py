from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from front_nets import Batch, TwoTaskNet, batches, same_weights, two_task_net, two_tasks
from test_compress import Accuracy

import taskprune
from taskprune import Budget, Frontier, PruneSettings, Task
from taskprune.errors import CheckpointError, InfeasibleBudgetError, InputError, ToleranceError
from taskprune.files import only_user_of
from taskprune.promise import PerSample
from taskprune.testing import visible

BUDGETS = [Budget(macs=part) for part in (0.9, 0.6, 0.3)]


class NearMap:
    """How near the map comes, 0 at best."""

    def reset(self) -> None:
        self.errors: list[float] = []

    def update(self, outputs: Any, batch: Batch, /) -> None:
        self.errors += (outputs["map"] - batch[2]).square().mean((1, 2, 3)).tolist()

    def compute(self) -> float:
        return -sum(self.errors) / len(self.errors)


def watched() -> dict[str, Task]:
    tasks = two_tasks()
    return {
        "kind": replace(tasks["kind"], metric=Accuracy(), tolerance=0.5),
        "map": replace(tasks["map"], metric=NearMap()),
    }


def net(seed: int = 0) -> TwoTaskNet:
    return two_task_net(seed, width=12)


def go(model: TwoTaskNet, **changes: Any) -> Frontier:
    arguments: dict[str, Any] = {
        "data": batches(2),
        "validation": batches(1, seed=5),
        "budgets": BUDGETS,
        "importance": "task_taylor",
        "settings": PruneSettings(verify=False),
        **changes,
    }
    return taskprune.frontier(model, arguments.pop("tasks", watched()), **arguments)


@pytest.fixture(scope="module")
def found() -> Frontier:
    """The frontier of the net, which tests only look at."""
    return go(two_task_net())


@dataclass
class Counting:
    """A criterion that counts how often it is asked."""

    calls: list[int] = field(default_factory=list, repr=False)

    def __call__(self, model: Any, groups: Any, evidence: Any) -> Any:
        self.calls.append(1)
        return {group.name: torch.arange(group.n_channels).double() for group in groups}


def test_a_frontier_measures_every_budget_with_one_scoring_and_leaves_the_model() -> None:
    model, criterion = net(), Counting()
    before = visible(model)
    found = go(model, importance=criterion, settings=PruneSettings())
    assert visible(model) == before
    assert criterion.calls == [1]
    assert found.size == "macs"
    assert found.missing == {}
    assert [point.budget for point in found.points] == [str(budget) for budget in BUDGETS]
    for point, budget in zip(found.points, BUDGETS, strict=True):
        assert budget.macs is not None
        assert 0.9 * budget.macs < point.macs / found.original.macs <= budget.macs
        assert point.params == sum(p.numel() for p in point.load().parameters())
        assert point.metrics.keys() == {"kind", "map"}
        assert point.latency_ms is None


def test_a_point_is_what_prune_makes_of_its_budget(found: Frontier) -> None:
    point = found.points[1]
    alone = taskprune.prune(
        two_task_net(), watched(), data=batches(2), budget=BUDGETS[1], importance="task_taylor"
    )
    assert point.plan == alone.plan
    assert same_weights(point.load(), alone.model)


def test_the_smallest_model_that_holds_is_picked(found: Frontier) -> None:
    lost = [found.original.metrics["map"] - point.metrics["map"] for point in found.points]
    assert lost == sorted(lost)  # a task that suffers
    picked = found.pick({"map": lost[1] + 1e-9, "kind": 1.0})
    assert picked.point is found.points[1]
    assert picked.lost["map"] == lost[1]
    assert picked.tolerances == {"kind": 1.0, "map": lost[1] + 1e-9}
    assert str(picked).startswith("Picked 60 % of the multiply-adds")
    with torch.no_grad():
        picked.model.stem.weight.zero_()  # type: ignore[union-attr, operator]
    assert same_weights(found.points[1].load(), found.pick({"map": lost[1]}).model)


def test_where_nothing_holds_the_error_says_which_task_lost_how_much(found: Frontier) -> None:
    before, after = (p.metrics["map"] for p in (found.original, found.points[0]))
    with pytest.raises(ToleranceError, match=r"None of the 3 models") as error:
        found.pick({"map": (before - after) / 2})
    assert f"`map` fell from {before:.4g} to {after:.4g}" in str(error.value)
    assert f"{(before - after) / 2:.4g} too much" in str(error.value)
    assert "90 % of the multiply-adds" in str(error.value)


@pytest.mark.parametrize(
    ("tolerance", "message"),
    [
        ({"maps": 0.1}, "tasks with a metric: `kind`, `map`. Found `maps`"),
        ({"map": -1}, "tolerance of `map` must be at least 0. Found -1"),
        ({"map": float("nan")}, "must be at least 0. Found nan"),
    ],
)
def test_tolerances_that_say_nothing_are_refused(tolerance: dict[str, float], message: str) -> None:
    point = go(net(), budgets=BUDGETS[:1])
    with pytest.raises(InputError, match=message):
        point.pick(tolerance)
    with pytest.raises(InputError, match="Say what the tasks may lose"):
        replace(point, tolerances={}).pick()


def test_without_tasks_outputs_are_compared_with_those_of_the_original() -> None:
    unlabelled = [batch[0] for batch in batches(2)]
    model = net()
    found = go(model, tasks=None, data=unlabelled, validation=unlabelled[:1], budgets=BUDGETS[::2])
    assert found.original.metrics == {"kind": 1.0, "map": 1.0}
    for task in ("kind", "map"):
        kept = [point.metrics[task] for point in found.points]
        assert 1 > kept[0] > kept[-1]
    with torch.no_grad():
        wanted, made = (m.eval()(unlabelled[0])["map"] for m in (model, found.points[0].load()))
    share = 1 - (wanted - made).square().sum() / (wanted - wanted.mean()).square().sum()
    assert found.points[0].metrics["map"] == pytest.approx(float(share), abs=1e-5)
    assert found.pick({"map": 1.0, "kind": 1.0}).point is found.points[-1]


def test_a_run_goes_on_where_it_was_and_gives_the_same(tmp_path: Path) -> None:
    model, criterion = net(), Counting()
    whole = go(model, importance=criterion)
    go(model, importance=criterion, directory=tmp_path, budgets=BUDGETS[:1])
    del criterion.calls[:]
    second = go(model, importance=criterion, directory=tmp_path)
    assert criterion.calls == [1]
    third = go(model, importance=criterion, directory=tmp_path)
    assert criterion.calls == [1]  # nothing was left to do
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "30-percent-of-the-multiply-adds.safetensors",
        "60-percent-of-the-multiply-adds.safetensors",
        "90-percent-of-the-multiply-adds.safetensors",
        "frontier.json",
    ]
    for point, again, alone in zip(second.points, third.points, whole.points, strict=True):
        assert point.summary() == again.summary()
        assert point.summary() | {"path": None} == alone.summary()
        assert point.plan == again.plan
        assert same_weights(again.load(), alone.load())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"settings": PruneSettings(protect="inner")}, "settings"),
        ({"latency": True}, "latency"),
        ({"importance": "random"}, "importance"),
        ({"tasks": {"kind": watched()["kind"]}}, "tasks"),
    ],
)
def test_a_folder_of_another_run_is_refused_by_name(
    changes: dict[str, Any], name: str, tmp_path: Path
) -> None:
    (budget,) = BUDGETS[:1]
    go(net(), directory=tmp_path, budgets=[budget])
    with pytest.raises(CheckpointError, match=f"another frontier: `{name}` was"):
        go(net(), directory=tmp_path, budgets=[budget], **changes)


def test_a_folder_of_another_model_and_damaged_files_are_refused(tmp_path: Path) -> None:
    go(net(), directory=tmp_path, budgets=BUDGETS[:1])
    with pytest.raises(CheckpointError, match="another frontier: `model` was"):
        go(net(1), directory=tmp_path)
    (point,) = tmp_path.glob("*.safetensors")
    point.rename(tmp_path / "60-percent-of-the-multiply-adds.safetensors")
    with pytest.raises(CheckpointError, match=r"60-percent.*is no point of this frontier"):
        go(net(), directory=tmp_path)
    file = tmp_path / "frontier.json"
    file.write_text(file.read_text().replace('"params": ', '"params": 1'))
    with pytest.raises(CheckpointError, match=r"frontier.json` is damaged"):
        go(net(), directory=tmp_path)


def test_a_second_run_is_locked_out(tmp_path: Path) -> None:
    with (
        only_user_of(tmp_path, option="x"),
        pytest.raises(InputError, match="no other run writes to"),
    ):
        go(net(), directory=tmp_path)


@dataclass
class Interrupting(NearMap):
    """Is interrupted, as by Ctrl-C, in the measurement of the second point."""

    measured: int = 0

    def compute(self) -> float:
        self.measured += 1
        if self.measured == 3:
            raise KeyboardInterrupt
        return super().compute()


def test_an_interrupt_keeps_the_points_that_are_finished(tmp_path: Path) -> None:
    tasks = watched()
    tasks["map"] = replace(tasks["map"], metric=Interrupting())
    model = net()
    before = visible(model)
    found = go(model, tasks=tasks, directory=tmp_path)
    assert visible(model) == before
    assert [point.budget for point in found.points] == [str(BUDGETS[0])]
    assert list(found.missing.values()) == ["Interrupted."] * 2
    assert "Not measured: 60 % of the multiply-adds. Interrupted." in str(found)
    assert len(go(model, tasks=tasks, directory=tmp_path).points) == 3  # the same, not anew
    assert tasks["map"].metric.measured == 5  # type: ignore[union-attr]


def test_an_interrupt_before_the_first_point_goes_through() -> None:
    tasks = watched()
    tasks["map"] = replace(tasks["map"], metric=Interrupting(measured=1))
    with pytest.raises(KeyboardInterrupt):
        go(net(), tasks=tasks)


def test_a_budget_out_of_reach_is_named_and_the_others_are_measured() -> None:
    impossible = Budget(macs=1e-5)
    found = go(net(), budgets=[impossible, BUDGETS[0]])
    assert len(found.points) == 1
    assert "At most" in found.missing[str(impossible)]
    with pytest.raises(InfeasibleBudgetError):
        go(net(), budgets=[impossible])


def test_latency_is_measured_where_it_is_asked_for() -> None:
    found = go(net(), budgets=BUDGETS[:1], latency=True)
    (point,) = found.points
    assert point.latency_ms is not None
    assert min(point.latency_ms) > 0
    assert "× as fast" in str(found)


def test_a_frontier_shows_all_points_and_draws_them(found: Frontier, tmp_path: Path) -> None:
    shown = str(found)
    for point in found.points:
        assert point.budget in shown
        assert f"{point.metrics['map']:.4g}" in shown
    assert '"budget": "90 % of the multiply-adds"' in found.to_json()
    found.plot(tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml")
    with pytest.raises(InputError, match="name of a picture to write"):
        found.plot(tmp_path / "curve.what")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.svg"]


def test_a_plot_without_matplotlib_says_what_to_install(
    found: Frontier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(taskprune.TaskPruneError, match=r"taskprune\[plot\]"):
        found.plot(tmp_path / "curve.png")


def _nothing() -> Iterator[Any]:
    yield from batches()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": []}, "`budgets` must be"),
        ({"budgets": "size"}, "`budgets` must be"),
        ({"budgets": [0.5]}, "`budgets` must be"),
        ({"budgets": [Budget(macs=0.5), Budget(macs=0.5)]}, "Found 50 % .* twice"),
        ({"data": None}, "calibration batches. Found none"),
        ({"validation": _nothing()}, "one pass only"),
        ({"validation": []}, "holds no batch"),
        ({"tasks": two_tasks()}, "no task has a metric"),
        ({"settings": PruneSettings(steps=2)}, "Found steps=2"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        go(net(), **changes)


def test_points_are_ordered_by_what_all_budgets_bound() -> None:
    found = go(net(), budgets=[Budget(params=0.5), Budget(params=0.8, macs=0.9)])
    assert found.size == "params"
    assert [point.params for point in found.points] == sorted(
        (point.params for point in found.points), reverse=True
    )


def near_map(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """How near the map of each sample comes, 1 at best."""
    error = (model(batch[0])["map"] - batch[2]).square().mean((1, 2, 3))
    return {"map": (1 - error).clamp_min(0)}


def test_a_promise_is_made_for_the_smallest_model_that_it_can_be_made_for(found: Frontier) -> None:
    found = replace(found, tolerances={})
    samples = PerSample(batches(60, seed=9), near_map)
    tolerance = {"map": 1e-9 + found.original.metrics["map"] - found.points[1].metrics["map"]}
    assert found.pick(tolerance).point is found.points[1]
    picked = found.pick(tolerance, samples=samples)  # too near to the tolerance to be sure
    assert picked.point is found.points[0]
    assert picked.promise is not None
    assert picked.promise.tasks["map"].samples == 480
    assert "With 95 % confidence" in str(picked)
    picked = found.pick({"map": 2.5 * tolerance["map"]}, samples=samples, confidence=0.9)
    assert picked.point is found.points[1]
    with pytest.raises(ToleranceError, match=r"has 480 samples, and it takes 1,\d+ to promise"):
        found.pick({"map": 0.002}, samples=samples)
