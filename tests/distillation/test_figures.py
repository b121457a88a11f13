"""What callbacks and metrics return, and where it goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_run import run, settings
from distill_toys import make_batches, make_net, near_loss
from torch import nn

from taskprune.distillation import StepRecord, Validation, measure
from taskprune.errors import InputError
from taskprune.tasks import Task


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
