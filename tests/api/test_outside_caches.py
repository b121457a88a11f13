"""Caches outside of module instances hold afterwards what they held before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import outside_tables as tables
import pytest
import torch
from torch import Tensor, nn

import taskprune
from taskprune import Budget, Task
from taskprune.cost import measure_latency
from taskprune.testing import randomise_

OF_CLASS: dict[str, Any] = {}


class Net(nn.Module):
    """Adds a table of positions that somebody keeps."""

    known: ClassVar[dict[Any, Tensor]] = {}
    last: Any = None

    def __init__(self, keep: str) -> None:
        super().__init__()
        self.i, self.a, self.o = nn.Linear(10, 32), nn.Linear(32, 48), nn.Linear(48, 3)
        self.keep = keep
        self.helper = tables.Recent()
        self.part = partial(tables.of_default, known={})

    def forward(self, x: Tensor) -> Any:
        x = self.i(x)
        return self.o(self.a(x + self.table(*x.shape[1:])).relu())

    def table(self, n: int, d: int) -> Tensor:
        if self.keep == "class":
            if (n, d) not in Net.known:
                Net.known[n, d] = tables.made(n, d)
            return Net.known[n, d]
        if self.keep == "type":
            kind: Any = type(self)
            if kind.last is None or kind.last.shape != (n, d):
                kind.last = tables.made(n, d)
            return kind.last  # type: ignore[no-any-return]
        if self.keep == "helper":
            return self.helper(n, d)
        if self.keep == "part":
            return self.part(n, d)
        return BY_NAME[self.keep](n, d)


BY_NAME: dict[str, Callable[[int, int], Tensor]] = {
    "any name": lambda n, d: getattr(tables, "of_" + "dict")(n, d),
    "dict": lambda n, d: tables.of_dict(n, d),
    "nested": lambda n, d: tables.of_nested(n, d),
    "lru": lambda n, d: tables.of_lru(n, d),
    "zeros": lambda n, d: tables.of_zeros(n, d),
    "decorated": lambda n, d: tables.of_decorated(n, d),
    "closure": lambda n, d: tables.of_closure(n, d),
    "default": lambda n, d: tables.of_default(n, d),
    "attribute": lambda n, d: tables.of_attribute(n, d),
    "global": lambda n, d: tables.of_global(n, d),
    "object": lambda n, d: tables.of_object(n, d),
}

KEEPS = ["class", "type", "helper", "part", *BY_NAME]


def kept(net: Net) -> dict[str, Any]:
    """All that is kept anywhere, by what it is."""
    closure = [cell.cell_contents for cell in tables.of_closure.__closure__ or ()]
    found: dict[str, Any] = {
        "class": Net.known,
        "type": [Net.last],
        "helper": [net.helper.own, tables.Recent.shared],
        "part": net.part.keywords,
        "dict": tables.TABLES,
        "nested": tables.NESTED,
        "closure": [content for content in closure if not callable(content)],
        "default": tables.of_default.__defaults__,
        "attribute": vars(tables.of_attribute),
        "global": tables.LAST,
        "object": [tables.of_object.own],
    }
    return {name: copy.deepcopy(value) for name, value in found.items()}


def tensors(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        pairs = [(key, item) for key, item in value.items() if tensors(item)]
        return [part for key, item in pairs for part in (key, *tensors(item))]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def assert_same(one: Any, other: Any) -> None:
    before, after = tensors(one), tensors(other)
    assert len(before) == len(after)
    for mine, theirs in zip(before, after, strict=True):
        if isinstance(mine, Tensor):
            assert type(theirs) is type(mine) is Tensor
            assert theirs.dtype == mine.dtype
            assert not theirs.is_inference()
            assert theirs.equal(mine)
        else:
            assert theirs == mine
            assert all(type(size) is int for size in theirs if not isinstance(theirs, str))


X = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
TASKS = {"t": Task(loss=lambda outputs, _: outputs.square().mean())}


def pruned(net: nn.Module) -> Any:
    return taskprune.prune(net, None, 0.3, example_inputs=X, importance="magnitude")


STAGES: dict[str, Callable[[nn.Module], Any]] = {
    "trace": lambda net: taskprune.trace(net, X),
    "prune": pruned,
    "prune by loss": lambda net: taskprune.prune(net, TASKS, 0.3, data=[X]),
    "time": lambda net: measure_latency({"net": net}, X, repeats=2, warmup=0),
    "drop": lambda net: taskprune.prune(
        net, TASKS, data=[X], budget=Budget(macs=0.7), compensate=False
    ),
}


@pytest.fixture(autouse=True)
def _empty() -> None:
    for cache in (Net.known, tables.TABLES, tables.NESTED["tables"], tables.Recent.shared):
        cache.clear()
    (tables.of_default.__defaults__ or ({},))[0].clear()
    Net.last = None
    tables.LAST = None
    tables.of_object.own.clear()
    vars(tables.of_attribute).clear()
    tables.of_lru.cache_clear()
    tables.of_zeros.cache_clear()
    for cell in tables.of_closure.__closure__ or ():
        if isinstance(cell.cell_contents, dict):
            cell.cell_contents.clear()
        elif isinstance(cell.cell_contents, Tensor):
            cell.cell_contents = None


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("stage", ["trace", "prune", "time"])
@pytest.mark.parametrize("keep", KEEPS)
def test_no_cache_keeps_anything(keep: str, stage: str, used: bool) -> None:
    net = Net(keep)
    randomise_(net, 0)
    expected = net(X) if used else None
    before = kept(net)
    STAGES[stage](net)
    for name, value in kept(net).items():
        assert_same(before[name], value)
    y = net(X)
    assert type(y) is Tensor
    assert y.dtype == torch.float32
    torch.autograd.backward(y.square().mean())
    if expected is not None:
        assert y.equal(expected)


@pytest.mark.parametrize("keep", KEEPS)
def test_a_second_model_in_the_process_is_pruned_alike(keep: str) -> None:
    first, second = (pruned(randomise_(Net(keep), 0)) for _ in range(2))
    assert first.plan.drop == second.plan.drop
    assert second.model(X).shape == (2, 6, 3)


@pytest.mark.parametrize("used", [False, True])
def test_sizes_from_a_cached_helper_follow(used: bool) -> None:
    net = Net("zeros")
    if used:
        net(X)
    groups = taskprune.couple(taskprune.trace(net, X))
    assert {group.name for group in groups} == {"i", "a"}
    assert (tables.of_zeros.cache_info().currsize == 0) or used


def test_what_else_code_notes_down_stays() -> None:
    """Only tensors and sizes of a trace go; a counter goes on counting."""
    calls: list[Any] = []

    def forward(model: nn.Module, x: Tensor) -> Any:
        calls.append(("called", x.shape))
        calls.append("again")
        return model(x)

    taskprune.prune(
        Net("dict"), None, 0.3, example_inputs=X, importance="magnitude", forward=forward
    )
    assert calls.count("again") >= 3
    sizes = [size for call in calls if call != "again" for size in call[1]]
    assert {type(size) for size in sizes} <= {int}
