"""Dropping a task takes all that only it used and leaves the others as they were, to the bit."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import taskprune
from taskprune import Task
from taskprune.calling import flatten_outputs
from taskprune.errors import AbsentValueError, InputError
from taskprune.plan.composition import compose
from taskprune.rewrite import apply_plan, remap_optimizer
from taskprune.testing import randomise_


class Upsample(nn.Module):
    """No parameters, and needs to know sizes."""

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.shape
        return F.interpolate(x, size=(2 * h, 2 * w))


class Pair(nn.Module):
    """Returns two tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.box = nn.Conv2d(width, 4, 1)
        self.logit = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.box(x), {"logit": self.logit(x)}


class ThreeHeads(nn.Module):
    """Detection with loose queries and a pair of outputs, lanes upsampled, a plain class."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.queries = nn.Parameter(torch.randn(1, 12, 1, 1))
        self.adapter = nn.Conv2d(12, 10, 1)
        self.detection = Pair(10)
        self.lane_mix = nn.ModuleList([nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8)])
        self.up = Upsample()
        self.lane = nn.Conv2d(8, 1, 1)
        self.kind = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.trunk(x)
        boxes, extra = self.detection(F.relu(self.adapter(x + self.queries)))
        y = x
        for layer in self.lane_mix:
            y = layer(y)
        return {
            "detection": {"boxes": boxes.flatten(2), **extra},
            "lane": self.lane(self.up(F.relu(y))).squeeze(1),
            "kind": self.kind(x.mean((2, 3))),
        }


INPUTS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def tasks() -> dict[str, Task]:
    return {
        name: Task(loss=lambda out, _batch: out["kind"].sum(), outputs=name)
        for name in ("detection", "lane", "kind")
    }


def net() -> nn.Module:
    return randomise_(ThreeHeads(), seed=0).eval()


GONE = {
    "detection": {"queries", "adapter", "detection"},
    "lane": {"lane_mix.0", "lane_mix.1", "lane"},
    "kind": {"kind"},
}


@pytest.mark.parametrize("name", sorted(GONE))
def test_exactly_what_only_the_task_used_goes(name: str) -> None:
    model = net()
    result = taskprune.drop_task(model, tasks(), name, example_inputs=INPUTS)
    expected = {
        p
        for p, _ in model.named_parameters()
        if any(p == path or p.startswith(f"{path}.") for path in GONE[name])
    }
    assert set(result.parameters) == expected
    left = {p for p, _ in result.model.named_parameters()}
    assert left == {p for p, _ in model.named_parameters()} - expected
    assert result.plan.costs["params"] == (
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in result.model.parameters()),
    )


@pytest.mark.parametrize("name", sorted(GONE))
@pytest.mark.parametrize("training", [False, True])
def test_other_outputs_are_equal_to_the_bit_and_the_dropped_are_none(
    name: str, training: bool
) -> None:
    model = net()
    result = taskprune.drop_task(model, tasks(), name, example_inputs=INPUTS)
    found = result.model.train(training)(INPUTS)
    expected = flatten_outputs(model.train(training)(INPUTS))
    for path, tensor in flatten_outputs(found).items():
        assert torch.equal(tensor, expected.pop(path))
    assert all(path.split(".")[0] == name for path in expected)
    dropped = found[name]
    assert set(dropped.values()) == {None} if isinstance(dropped, dict) else dropped is None


def test_gradients_of_what_only_the_task_used_are_exactly_zero_for_the_others() -> None:
    model = net()
    result = taskprune.drop_task(model, tasks(), "lane", example_inputs=INPUTS)
    outputs = model(INPUTS)
    others = [*outputs["detection"].values(), outputs["kind"]]
    torch.autograd.backward([t.sum() for t in others])
    named = dict(model.named_parameters())
    assert all(named[name].grad is None for name in result.parameters)
    assert all(p.grad is not None for name, p in named.items() if name not in result.parameters)


def test_the_original_stays_as_it_was() -> None:
    model = net().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    taskprune.drop_task(model, tasks(), "lane", example_inputs=INPUTS)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model._forward_hooks


class Counting(ThreeHeads):
    """Remembers its calls in a buffer and in a plain attribute."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.steps += 1
        self.seen.append(len(x))
        return super().forward(x)


def test_neither_the_original_nor_the_result_knows_of_the_calls_it_took() -> None:
    model: Any = Counting()
    result: Any = taskprune.drop_task(model, tasks(), "lane", example_inputs=INPUTS)
    for own in (model, result.model):
        assert (own.steps.item(), own.seen, own.training) == (0, [], True)


def test_several_tasks_go_together() -> None:
    result = taskprune.drop_task(net(), tasks(), ("lane", "detection"), example_inputs=INPUTS)
    assert {n.split(".")[0] for n, _ in result.model.named_parameters()} == {"trunk", "kind"}


def test_the_plan_redoes_it_and_joins_with_pruning(tmp_path: Path) -> None:
    model = net()
    dropped = taskprune.drop_task(model, tasks(), "lane", example_inputs=INPUTS)
    again = apply_plan(model, dropped.plan, example_inputs=INPUTS)
    assert again.state_dict().keys() == dropped.model.state_dict().keys()
    rest = {name: task for name, task in tasks().items() if name != "lane"}
    pruned = taskprune.prune(
        dropped.model, rest, 0.3, example_inputs=INPUTS, importance="magnitude"
    )
    joined = compose(dropped.plan, pruned.plan)
    taskprune.save_checkpoint(tmp_path / "net.safetensors", pruned.model, joined)
    loaded = taskprune.load_checkpoint(tmp_path / "net.safetensors", ThreeHeads)
    expected = flatten_outputs(pruned.model(INPUTS))
    found = flatten_outputs(loaded.eval()(INPUTS))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[path], expected[path]) for path in expected)


def test_the_result_can_be_copied_pickled_and_trained() -> None:
    result = taskprune.drop_task(net(), tasks(), "detection", example_inputs=INPUTS)
    for copied in (copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        assert copied(INPUTS)["detection"] == {"boxes": None, "logit": None}
    outputs = result.model.train()(INPUTS)
    torch.autograd.backward(outputs["kind"].sum() + outputs["lane"].sum())
    assert all(p.grad is not None for p in result.model.parameters())


def test_an_optimizer_goes_on_with_what_is_left() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(INPUTS)["kind"].sum().backward()
    optimizer.step()
    result = taskprune.drop_task(model, tasks(), "lane", example_inputs=INPUTS)
    again = remap_optimizer(optimizer, model, result.model, result.plan)
    assert set(map(id, again.param_groups[0]["params"])) == set(map(id, result.model.parameters()))


class Entangled(nn.Module):
    """The shared code asks a head's output for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 4)
        self.a = nn.Linear(4, 2)
        self.b = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        a = self.a(x)
        rows, _ = a.shape
        return {"a": a, "b": self.b(x)[:rows]}


def two_tasks() -> dict[str, Task]:
    return {n: Task(loss=lambda out, _batch: out["a"].sum(), outputs=n) for n in ("a", "b")}


def test_code_that_needs_the_values_of_a_dropped_task_is_refused() -> None:
    with pytest.raises(AbsentValueError, match="unpacked"):
        taskprune.drop_task(Entangled(), two_tasks(), "a", example_inputs=torch.randn(3, 4))


def test_other_outputs_may_hold_nan() -> None:
    """Such as the distance of nothing to nothing: equal to the bit, and unequal to itself."""

    class Undefined(Entangled):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.trunk(x)
            b = self.b(x)
            return {"a": self.a(x), "b": b, "c": b.masked_fill(b > b.mean(), float("nan"))}

    result = taskprune.drop_task(Undefined(), two_tasks(), "a", example_inputs=torch.randn(3, 4))
    assert result.modules == ("a",)


def test_tasks_that_share_everything_are_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.layer(x)
            return {"a": x[:, :2], "b": x[:, 2:]}

    with pytest.raises(InputError, match="serves a alone"):
        taskprune.drop_task(Shared(), two_tasks(), "a", example_inputs=torch.randn(3, 4))


@pytest.mark.parametrize(
    ("dropped", "message"), [("c", "Found `c`"), ((), "Found none"), (("a", "b"), "to stay")]
)
def test_wrong_names_are_refused(dropped: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        taskprune.drop_task(Entangled(), two_tasks(), dropped, example_inputs=torch.randn(3, 4))
