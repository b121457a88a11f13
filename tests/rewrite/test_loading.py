"""Models run on weights that are made as they are used, and verification on few samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_nets import hand_made, member, rows
from torch import Tensor, nn

from taskprune import couple, trace
from taskprune.calling.forward import call_inputs
from taskprune.coupling.groups import CouplingGroup
from taskprune.errors import VerificationError
from taskprune.plan.plan import build_plan
from taskprune.restore.caches import Caches
from taskprune.rewrite import apply_and_verify, loading, samples
from taskprune.rewrite.comparison import run
from taskprune.rewrite.surgery import skeleton
from taskprune.testing import random_drop, randomise_


class Net(nn.Module):
    """Weights used by their modules, by functions, twice, in views, and by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.cell = nn.GRU(6, 6, batch_first=True)
        self.shift = nn.Parameter(torch.randn(6))
        self.unused = nn.Parameter(torch.randn(3))
        self.register_buffer("scale", torch.randn(6))
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x).flatten(0, 1)).unflatten(0, x.shape[:2])
        hidden = self.cell(x + self.shift)[0][:, -1]
        tied = self.embed.weight.T
        out: Tensor = F.linear(hidden, tied) * len(self.shift) + F.linear(hidden * self.scale, tied)
        return out + self.embed.weight.sum().to(self.shift.dtype)


@pytest.mark.parametrize("room", [0, 2**28])
@pytest.mark.parametrize("dtype", [torch.float64, None])
def test_weights_that_come_and_go_give_what_a_cast_model_gives(
    room: int, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "ROOM", room)
    net = randomise_(Net(), 0).eval()
    before = {name: (t.data_ptr(), t.clone()) for name, t in net.state_dict().items()}
    x = torch.randn(5, 3, 4)
    found = run(skeleton(net), x, call_inputs, Caches(net), dtype=dtype)["output"]
    for name, tensor in net.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])
    net = net if dtype is None else net.to(dtype)
    with torch.no_grad():
        assert torch.equal(found, net(x.to(found.dtype)))


def test_only_what_is_used_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ROOM", 0)
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    most: list[int] = []

    def forward(model: nn.Module, x: Tensor) -> Any:
        for layer in model.children():
            x = layer(x)
            with torch._C.DisableTorchFunction():
                most.append(sum(p.dtype == torch.float64 for p in held))
        return x

    copied = skeleton(net)
    held = list(copied.parameters())
    run(copied, torch.randn(2, 8), forward, Caches(copied), dtype=torch.float64)
    assert max(most) <= 2


@pytest.mark.parametrize("dtype", [torch.float64, None])
def test_what_a_forward_writes_to_its_weights_stays_for_the_forward(
    dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "ROOM", 0)

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.first.weight.mul_(0)
            out: Tensor = self.first(self.second(x)) - self.first.bias
            return out

    net = Writes()
    before = net.first.weight.detach().clone()
    found = run(skeleton(net), torch.randn(2, 3), call_inputs, Caches(net), dtype=dtype)["output"]
    assert found.abs().max() == 0
    assert torch.equal(net.first.weight, before)


class Hidden(nn.Module):
    def __init__(self, n_samples: int | None = None) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.n_samples = n_samples

    def forward(self, x: Tensor) -> Tensor:
        if self.n_samples is not None:
            x = x.reshape(self.n_samples, 3)
        out: Tensor = self.head(torch.relu(self.hidden(x)))
        return out


def hidden_group(shift: int = 0) -> CouplingGroup:
    members = (
        member("hidden.weight", 0, rows(6)),
        member("hidden.bias", 0, rows(6)),
        member("head.weight", 1, np.roll(rows(6), shift, axis=0), False),
    )
    return CouplingGroup("hidden", 6, members)


def test_two_samples_of_a_large_model_are_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    made = hand_made(Hidden(), (hidden_group(),), torch.randn(8, 3))
    plan = build_plan(made.groups, {"hidden": np.array([1, 4])})
    report = apply_and_verify(made.model, plan, example_inputs=made.inputs)[1]
    assert report is not None
    assert report.samples == (8, 8)
    monkeypatch.setattr(samples, "SMALL_WORK", 0)
    lengths: list[int] = []

    def forward(model: nn.Module, x: Tensor) -> Any:
        lengths.append(len(x))
        return model(x)

    report = apply_and_verify(made.model, plan, example_inputs=made.inputs, forward=forward)[1]
    assert report is not None
    assert report.samples == (2, 8)
    assert str(report).endswith("(float64, 2 of 8 samples)")
    assert lengths == [2, 2]


def test_samples_that_a_model_rejects_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "SMALL_WORK", 0)
    made = hand_made(Hidden(8), (hidden_group(),), torch.randn(8, 3))
    plan = build_plan(made.groups, {"hidden": np.array([1, 4])})
    report = apply_and_verify(made.model, plan, example_inputs=made.inputs)[1]
    assert report is not None
    assert report.samples == (8, 8)


def test_a_wrong_group_is_found_on_two_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "SMALL_WORK", 0)
    made = hand_made(Hidden(), (hidden_group(1),), torch.randn(8, 3))
    plan = build_plan(made.groups, {"hidden": np.array([1, 4])})
    with pytest.raises(VerificationError, match="is off by"):
        apply_and_verify(made.model, plan, example_inputs=made.inputs)


def test_samples_are_cut_alike_in_nested_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "SMALL_WORK", 0)
    batch = {"x": (torch.arange(5), [torch.ones(5, 3), "name"]), "grid": torch.ones(7), "n": 5}
    part, found = samples.first_samples(Hidden(), batch)
    assert found == (2, 5)
    assert part["x"][0].tolist() == [0, 1]
    assert part["x"][1][0].shape == (2, 3)
    assert part["x"][1][1:] == ["name"]
    assert part["grid"].shape == (7,)
    assert samples.first_samples(Hidden(), "text") == ("text", None)


def test_code_that_treats_a_replaced_module_differently_is_found() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            made = self.attend(x, x, x, need_weights=False)[0]
            if not isinstance(self.attend, nn.MultiheadAttention):
                made = made + 1
            out: Tensor = self.head(made)
            return out

    net = randomise_(Asks(), 0).eval()
    x = torch.randn(2, 5, 8)
    groups = couple(trace(net, x))
    assert groups.replacements
    plan = build_plan(groups, random_drop(groups, 0.3, seed=0))
    with pytest.raises(VerificationError, match="were replaced by equal ones"):
        apply_and_verify(net, plan, example_inputs=x, groups=groups)
