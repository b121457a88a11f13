from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from front_nets import Batch, TwoTaskNet, batches, two_task_net, two_tasks
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import taskprune
from taskprune import DistillSettings, Task
from taskprune.errors import InfeasibleBudgetError, InputError
from taskprune.front.compression import CompressionPoint
from taskprune.testing import visible


class Accuracy:
    """The part of images whose kind is found."""

    def reset(self) -> None:
        self.hits: list[float] = []

    def update(self, outputs: Any, batch: Batch, /) -> None:
        self.hits += (outputs["kind"].argmax(1) == batch[1]).double().tolist()

    def compute(self) -> float:
        return sum(self.hits) / len(self.hits)


class Falling(Accuracy):
    """Falls by one with each measurement."""

    value = 5.0

    def compute(self) -> float:
        self.value -= 1
        return self.value


FEW = TensorDataset(torch.ones(3, 3, 8, 8))  # less than a batch


class Nothing(IterableDataset[Any]):
    """A stream that ends at once; its length is not known before."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def watched(**changes: Any) -> dict[str, Task]:
    tasks = two_tasks()
    return {**tasks, "kind": replace(tasks["kind"], metric=Accuracy(), **changes)}


def go(model: TwoTaskNet, tasks: dict[str, Task], **changes: Any) -> taskprune.CompressionResult:
    arguments: dict[str, Any] = {
        "ratio": 0.5,
        "data": batches(),
        "steps": 2,
        "validation": batches(2, seed=5),
        "settings": DistillSettings(steps=4, learning_rate=1e-3, cpu=True),
        **changes,
    }
    return taskprune.compress(model, tasks, arguments.pop("ratio"), **arguments)


def n_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_each_step_removes_the_same_part_until_the_target() -> None:
    model = two_task_net()
    before = visible(model)
    result = go(model, watched())
    assert visible(model) == before
    assert result.stopped is None
    sizes = [point.params for point in result.points]
    assert sizes == [n_parameters(point.model) for point in result.points]
    assert sizes[2] <= 0.5 * sizes[0] < sizes[1] <= 0.5**0.5 * sizes[0]
    assert sizes[1] > 0.65 * sizes[0]
    assert [point.macs for point in result.points] == sorted(
        (point.macs for point in result.points), reverse=True
    )
    assert result.model is result.points[2].model
    assert all(set(point.metrics) == {"kind"} for point in result.points)


def test_the_plan_of_each_point_leads_there_from_the_original() -> None:
    model = two_task_net()
    for point in go(model, watched()).points[1:]:
        assert point.plan is not None
        rebuilt = taskprune.apply_plan(model, point.plan, example_inputs=batches(1)[0][:1])
        rebuilt.load_state_dict(point.model.state_dict())
        x = batches(1)[0][0]
        for found, wanted in zip(
            rebuilt.eval()(x).values(), point.model.eval()(x).values(), strict=True
        ):
            torch.testing.assert_close(found, wanted)


def test_it_stops_where_a_tolerance_is_broken_and_keeps_the_model_before() -> None:
    tasks = watched()
    tasks["kind"] = replace(tasks["kind"], metric=Falling(), tolerance=1.5)
    result = go(two_task_net(), tasks, steps=3)
    assert [point.broken for point in result.points] == [(), (), ("kind",)]
    assert result.stopped is not None
    assert "Step 2: `kind` fell from 4 to 2 and may lose 1.5" in result.stopped
    assert result.best is result.points[1]


def test_the_front_holds_what_nothing_else_dominates() -> None:
    def point(step: int, params: int, kind: float) -> CompressionPoint:
        return CompressionPoint(step, params, params, {"kind": kind}, (), torch.nn.ReLU(), None)

    points = (point(0, 100, 0.8), point(1, 80, 0.9), point(2, 60, 0.7), point(3, 60, 0.6))
    result = taskprune.CompressionResult(points, None)
    assert [p.step for p in result.front] == [1, 2]


def test_the_points_are_shown_as_a_table_and_as_json() -> None:
    def point(step: int, params: int, kind: float, *broken: str) -> CompressionPoint:
        model = torch.nn.ReLU()
        return CompressionPoint(step, params, 10 * params, {"kind": kind}, broken, model, None)

    points = (point(0, 1000, 0.8), point(1, 800, 0.9), point(2, 600, 0.7, "kind"))
    result = taskprune.CompressionResult(points, "Step 2: `kind` fell from 0.8 to 0.7.")
    shown = str(result)
    assert "Stopped. Step 2: `kind` fell from 0.8 to 0.7." in shown
    rows = [
        [c.strip() for c in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line
    ]
    assert rows == [
        ["0", "1,000", "", "10,000", "", "0.8", "the original"],
        ["1*", "800", "-20.0%", "8,000", "-20.0%", "0.9", "the best"],
        ["2*", "600", "-40.0%", "6,000", "-40.0%", "0.7", "kind lost too much"],
    ]
    found = json.loads(result.to_json())
    assert (found["best"], found["stopped"]) == (1, result.stopped)
    assert [p["on_front"] for p in found["points"]] == [False, True, True]
    assert found["points"][2]["broken"] == ["kind"]


def test_a_step_that_cannot_be_made_ends_the_run_with_what_there_is() -> None:
    result = go(two_task_net(), watched(), ratio=0.9999, steps=4)
    assert result.stopped is not None
    assert len(result.points) > 1
    assert result.stopped.startswith(f"Step {len(result.points)} of 4: At most ")
    assert f" of {result.points[0].params:,}, which removes" in result.stopped
    with pytest.raises(InfeasibleBudgetError):
        go(two_task_net(), watched(), ratio=0.9999, steps=1)


def test_a_run_goes_on_from_its_folder(tmp_path: Path) -> None:
    settings = DistillSettings(steps=4, cpu=True, directory=tmp_path)
    first = go(two_task_net(), watched(), settings=settings)
    written = (tmp_path / "step_1" / "checkpoint.safetensors").stat().st_mtime_ns
    again = go(two_task_net(), watched(), settings=settings)
    assert (tmp_path / "step_1" / "checkpoint.safetensors").stat().st_mtime_ns == written
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    path = first.points[2].path
    assert path is not None
    loaded = taskprune.load_checkpoint(path, two_task_net())
    for one, other in zip(first.model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "`steps` must be a whole number"),
        ({"ratio": 1.5}, "ratio"),
        ({"settings": {}}, "`settings` must be a `DistillSettings`"),
        ({"settings": DistillSettings(steps=1, directory=Path(__file__))}, "a folder to write to"),
        ({"validation": None}, "Pass `validation=`"),
        ({"validation": iter(batches(1))}, "one pass only"),
        ({"validation": []}, "holds no batch"),
        ({"validation": DataLoader(FEW, batch_size=8, drop_last=True)}, "holds no batch"),
        ({"validation": DataLoader(Nothing(), batch_size=None)}, "holds no batch"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        go(two_task_net(), watched(), **changes)


def test_a_tolerance_without_a_metric_is_refused() -> None:
    tasks = two_tasks()
    tasks["map"] = replace(tasks["map"], tolerance=0.1)
    with pytest.raises(InputError, match=r"Task `map` has a tolerance of 0.1 but no `metric`"):
        go(two_task_net(), tasks)
