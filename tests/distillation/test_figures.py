"""What callbacks and metrics return, and where it goes."""

from __future__ import annotations

import json
import sys
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from distill_run import run, settings
from distill_toys import make_batches, make_net, near_loss
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from taskprune.calling.placing import on_device
from taskprune.calling.task import Task
from taskprune.distillation import StepRecord, Validation, measure
from taskprune.errors import InputError


class Fixed:
    """A metric with the value it is given."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def reset(self) -> None:
        pass

    def update(self, outputs: Any, batch: Any, /) -> None:
        pass

    def compute(self) -> Any:
        return self.value


def measured_as(value: Any) -> dict[str, Task]:
    return {"near": Task(near_loss, metric=Fixed(value))}


NUMBERS = [
    torch.tensor(0.5),
    torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True),
    np.float32(0.5),
    np.array([0.5]),
]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_metrics_may_return_tensors_and_arrays_of_one_number(value: Any, tmp_path: Path) -> None:
    found = measure(make_net(1), measured_as(value), make_batches(1))
    assert found == {"near": 0.5}
    assert type(found["near"]) is float
    watch = Validation(measured_as(value), make_batches(1), every=1)

    def bare(record: StepRecord, student: nn.Module) -> dict[str, Any]:
        return {"half": value}

    kept = settings(1, directory=tmp_path, callbacks=(watch, bare))
    measured = run(make_net(1), make_net(0), settings=kept).history[0].measured
    assert measured == {"validation/near": 0.5, "half": 0.5}
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["measured"] == measured


class Stream(IterableDataset[Any]):
    """Batches of unknown number, and each pass one fewer."""

    n_left = 1

    def __iter__(self) -> Iterator[Any]:
        self.n_left -= 1
        return iter(make_batches(1)[: self.n_left + 1])


def test_data_that_holds_no_batch_gives_no_figures() -> None:
    tasks = measured_as(1.0)
    few = TensorDataset(torch.ones(3, 3, 8, 8))
    data: list[Any] = [[], DataLoader(few, batch_size=8, drop_last=True)]
    for empty in data:
        with pytest.raises(InputError, match="holds no batch"):
            Validation(tasks, empty, every=1)
        with pytest.raises(InputError, match="holds no batch"):
            measure(make_net(1), tasks, empty)
    watch = Validation(tasks, DataLoader(Stream(), batch_size=None), every=1)
    with pytest.raises(InputError, match="holds no batch"):
        run(make_net(1), make_net(0), settings=settings(callbacks=(watch,)))


def test_validation_data_of_one_pass_is_refused() -> None:
    with pytest.raises(InputError, match=r"in each measurement\. Found an iterator"):
        Validation(measured_as(1.0), iter(make_batches(1)), every=1)
    assert measure(make_net(1), measured_as(1.0), iter(make_batches(1))) == {"near": 1.0}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(2), r"Found Tensor of shape \[2\]"),
        (np.ones(2), r"Found ndarray of shape \[2\]"),
        ({"f1": 0.5}, "Found dict {'f1': 0.5}"),
        ("0.5", "Found str '0.5'"),
        (None, "Found NoneType None"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_metrics_that_return_no_number_are_named(value: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"metric of task `near` must be a number.*{said}"):
        measure(make_net(1), measured_as(value), make_batches(1))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.5, "callback `.*callback` must return a dict .* Found 0.5, a float, after step 1"),
        ({1: 0.5}, "must return a dict from names"),
        ({"lane": "good"}, "figure `lane` of the callback `.*callback` must be a number"),
    ],
    ids=str,
)
def test_callbacks_that_return_no_figures_are_named(value: Any, said: str) -> None:
    def callback(record: StepRecord, student: nn.Module) -> Any:
        return value

    with pytest.raises(InputError, match=said):
        run(make_net(1), make_net(0), settings=settings(1, callbacks=(callback,)))


def test_metrics_are_measured_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are part of pruning with `validation=`, for which the core is enough."""
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setitem(sys.modules, "accelerate.utils", None)
    assert measure(make_net(1), measured_as(1.0), make_batches(1)) == {"near": 1.0}


def test_all_tensors_of_a_batch_are_placed_and_nothing_else_changes() -> None:
    class Pair(NamedTuple):
        images: torch.Tensor
        others: list[Any]

    tensor = torch.ones(2)
    batch = Pair(tensor, [UserDict({"x": (tensor, None)}), "of the sample", 3])
    placed = on_device(batch, torch.device("meta"))
    assert isinstance(placed, Pair)
    assert placed.images.is_meta
    assert isinstance(placed.others[0], UserDict)
    assert placed.others[0]["x"][0].is_meta
    assert placed.others[1:] == ["of the sample", 3]
    assert on_device(batch, tensor.device).images is tensor
