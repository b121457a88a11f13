"""What ``prune`` hands out: a model that trains on, a report, and signs of life meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest
import torch
from front_nets import (
    Batch,
    assert_step,
    assert_trains,
    batches,
    images,
    kind_loss,
    map_loss,
    mean_losses,
    settled,
    two_task_net,
    two_tasks,
)

import taskprune
from taskprune import PruneSettings, Task
from taskprune.front import job
from taskprune.rewrite import remap_optimizer

# -- what comes out --------------------------------------------------------------------------------


def test_a_pruned_model_trains_on_with_its_optimizers_state() -> None:
    net = two_task_net()
    optimizer = assert_trains(net)
    result = taskprune.prune(net, two_tasks(), 0.4, data=batches(2))
    remapped = remap_optimizer(optimizer, net, result.model, result.plan)
    assert_step(result.model, remapped)
    for parameter in result.model.parameters():
        state = remapped.state[parameter]
        assert state["exp_avg"].shape == parameter.shape
        assert float(state["step"]) == 2
    assert_step(net, optimizer)


def test_the_default_costs_less_than_chance() -> None:
    """On average over the tasks, each relative to what it was before."""
    net = two_task_net(width=24)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    data, unseen = batches(12), batches(4, seed=2)
    net.train()
    for _ in range(12):
        for batch in data:
            optimizer.zero_grad()
            outputs = net(batch[0])
            torch.autograd.backward(kind_loss(outputs, batch) + map_loss(outputs, batch))
            optimizer.step()
    original = mean_losses(net, unseen)

    def cost(importance: Any) -> float:
        result = taskprune.prune(net, two_tasks(), 0.4, data=data, importance=importance)
        return float((mean_losses(result.model, unseen) / original).mean())

    by_chance = [cost(taskprune.importance.RandomImportance(seed=seed)) for seed in range(3)]
    assert cost("task_taylor") < min(by_chance)


def test_the_result_prints_within_100_columns() -> None:
    result = taskprune.prune(two_task_net(), two_tasks(), 0.3, data=batches(2))
    text = str(result)
    assert max(len(line) for line in text.splitlines()) <= 100
    for expected in ("parameters", "kind", "map", "inputs and outputs of the model", "Verified"):
        assert expected in text
    assert repr(result).startswith("PruneResult(")
    assert len(repr(result)) < 200


def test_the_report_survives_json() -> None:
    report = taskprune.prune(two_task_net(), two_tasks(), 0.3, data=batches(2)).report

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(report.to_json(), parse_constant=refuse)
    assert found == json.loads(json.dumps(asdict(report)))
    assert found["costs"]["params"] == list(report.costs["params"])
    assert [line["task"] for line in found["tasks"]] == ["kind", "map"]
    assert sum(group["n_channels"] for group in found["groups"]) == sum(
        group.n_channels for group in taskprune.couple(taskprune.trace(two_task_net(), images(2)))
    )


def test_a_task_may_be_called_all() -> None:
    tasks = {"all": Task(kind_loss, outputs="kind"), "map": Task(map_loss, outputs="map")}
    report = taskprune.prune(two_task_net(), tasks, 0.3, data=batches(2)).report
    n_map_only = sum(g.n_channels for g in report.groups if g.tasks == ("map",))
    n_channels = sum(g.n_channels for g in report.groups)
    assert report.tasks[0].channels == n_channels - n_map_only


def test_verification_can_be_switched_off() -> None:
    result = taskprune.prune(
        two_task_net(), two_tasks(), 0.3, data=batches(1), settings=PruneSettings(verify=False)
    )
    assert result.report.verification is None
    assert "Verified" not in str(result)


# -- what a person sees meanwhile ------------------------------------------------------------------


def announced(monkeypatch: pytest.MonkeyPatch, **keywords: Any) -> list[str]:
    seen: list[str] = []

    @contextmanager
    def stages(_title: str) -> Iterator[Callable[[str], None]]:
        yield seen.append

    monkeypatch.setattr(job, "stages", stages)
    taskprune.prune(two_task_net(), two_tasks(), 0.3, **settled(keywords))
    return seen


def test_stages_and_batches_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = announced(monkeypatch, data=batches(3))
    assert [line.split(",")[0] for line in seen] == [
        "tracing the model",
        "finding which channels belong together",
        *["scoring every channel"] * 4,
        "choosing channels",
        "letting what stays say what goes said",
        "rewriting and verifying",
    ]
    assert "3 of 3 batches done" in seen[5]


def test_a_limit_on_batches_is_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = announced(monkeypatch, data=batches(3), n_batches=2)
    assert any("2 of 2 batches done" in line for line in seen)


def test_an_unknown_number_of_batches_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = announced(monkeypatch, data=iter_without_length())
    assert any("2 batches done" in line for line in seen)


def iter_without_length() -> Iterator[Batch]:
    yield from batches(2)


def test_nothing_is_printed_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    taskprune.prune(two_task_net(), two_tasks(), 0.3, data=batches(1))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
