"""Inputs are known by the names the forward has for them, and followed wherever they go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taskprune.graph import trace
from taskprune.graph.reach import InputReach, follow_inputs


def rows(width: int = 4) -> Tensor:
    return torch.ones(2, width)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, first: Tensor, *others: Tensor, last: Any = None, **rest: Tensor) -> Tensor:
        total = first
        for other in (*others, *rest.values(), *(last or {}).values()):
            total = total + other
        out: Tensor = self.layer(total)
        return out


@pytest.mark.parametrize(
    ("inputs", "paths"),
    [
        (rows(), ["first"]),
        ((rows(), rows(), rows()), ["first", "others.0", "others.1"]),
        ({"first": rows(), "extra": rows()}, ["first", "extra"]),
        ({"first": rows(), "last": {"a": rows(), "b": rows()}}, ["first", "last.a", "last.b"]),
    ],
    ids=["tensor", "positions", "keywords", "nested"],
)
def test_inputs_have_the_names_of_arguments(inputs: Any, paths: list[str]) -> None:
    graph = trace(Named(), inputs)
    assert [entry.path for entry in graph.inputs] == paths
    assert follow_inputs(graph).tensors["layer.weight"] == set(paths)


def test_names_do_not_depend_on_how_the_batch_is_laid_out() -> None:
    graph = trace(Named(), [rows()], forward=lambda model, batch: model(first=batch[0]))
    assert [entry.path for entry in graph.inputs] == ["first"]


def test_a_forward_that_passes_the_model_by_has_no_inputs() -> None:
    net = Named()
    graph = trace(net, rows(), forward=lambda _, batch: net.layer(batch))
    assert graph.inputs == ()


def test_every_recorded_pass_has_its_inputs_once() -> None:
    graph = trace(Named(), rows(), modes="both")
    assert [(entry.path, entry.mode) for entry in graph.inputs] == [
        ("first", "eval"),
        ("first", "train"),
    ]
    assert follow_inputs(graph).inputs == ("first",)


class Routes(nn.Module):
    """One parameter for each way in which inputs get to it, or do not."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = (nn.Linear(4, 4) for _ in range(3))
        self.shared, self.written = nn.Linear(4, 4), nn.Linear(4, 4)
        self.sized, self.read = nn.Linear(4, 4), nn.Linear(4, 4)
        self.shift: Tensor
        self.query = nn.Parameter(torch.zeros(2, 4))
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, a: Tensor, b: Tensor) -> list[Tensor]:
        left, right = self.left(a), self.right(b) + self.shift
        both = self.both(torch.cat((left, right)))
        shared = self.shared(a), self.shared(b)
        canvas = a.new_zeros(4, 4)
        sized = self.sized(torch.zeros_like(a))
        canvas[:2] = b
        written = self.written(canvas)
        read = self.read(self.query.relu() * 2) + a
        return [both, *shared, sized, written, read]


@pytest.fixture
def reach() -> InputReach:
    return follow_inputs(trace(Routes(), (rows(), rows())))


@pytest.mark.parametrize(
    ("tensor", "inputs"),
    [
        ("left.weight", {"a"}),
        ("right.weight", {"b"}),
        ("shift", {"b"}),
        ("both.weight", {"a", "b"}),
        ("shared.weight", {"a", "b"}),
        ("written.weight", {"b"}),
        ("sized.weight", set()),
        ("query", {"a"}),
        ("read.weight", {"a"}),
    ],
)
def test_inputs_are_followed_through_operators(
    reach: InputReach, tensor: str, inputs: set[str]
) -> None:
    assert reach.tensors[tensor] == inputs


def test_where_inputs_meet_the_modules_are_known_that_hand_them_over(reach: InputReach) -> None:
    met = {(frozenset(m.carried), m.operator): m.modules for m in reach.meetings}
    assert met[frozenset("a"), "aten.cat.default"] == (("left", frozenset("a")),)
    # A sum outside of any module: nobody returns it.
    assert met[frozenset("b"), "aten.cat.default"] == ()


class InPlace(nn.Module):
    """A branch whose last module writes to what the one before returned, and one spoilt later."""

    def __init__(self) -> None:
        super().__init__()
        self.tidy = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
        self.spoilt = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat((self.tidy(a), self.spoilt(b).add_(1)))


def test_what_is_written_to_after_its_module_returned_it_is_nobodys_output() -> None:
    meetings = follow_inputs(trace(InPlace(), (rows(), rows()))).meetings
    found = {tuple(m.carried): [path for path, _ in m.modules] for m in meetings}
    assert found == {("a",): ["tidy", "tidy.1"], ("b",): []}
