"""Outputs that would be the same whatever is removed prove nothing, and the verifier knows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import hand_made, member, rows
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import taskprune
from taskprune import PruneSettings
from taskprune.coupling import couple
from taskprune.coupling.groups import CouplingGroup, TensorSlice
from taskprune.errors import VerificationError
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.rewrite import VerificationReport, apply_and_verify
from taskprune.rewrite.drawing import Draws
from taskprune.testing import randomise_


class Net(nn.Module):
    """A layer, its norm, and a head that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.head = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.hidden(x)))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


def zero_head(net: Net) -> None:
    nn.init.zeros_(net.head.weight)


def nan_in_a_buffer(net: Net) -> None:
    net.norm.running_mean[0] = float("nan")  # type: ignore[index]


def dead_features(net: Net) -> None:
    with torch.no_grad():
        net.norm.bias.uniform_(-1001, -1000)


def nothing(_net: Net) -> None:
    """Fresh norms do not tell their channels apart."""


DEFECTS = [nothing, zero_head, nan_in_a_buffer, dead_features]


def verified(
    kind: type[Net],
    x: Tensor,
    wrong: str = "",
    *,
    defect: Callable[[Net], None] = nothing,
    **options: Any,
) -> VerificationReport:
    def entries(name: str, dim: int, produces: bool = True) -> TensorSlice:
        order = np.roll(rows(6), 1, axis=0) if name == wrong else rows(6)
        return member(name, dim, order, produces)

    norm = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    group = CouplingGroup(
        "hidden",
        6,
        (
            entries("hidden.weight", 0),
            entries("hidden.bias", 0),
            *(entries(name, 0) for name in norm),
            entries("head.weight", 1, False),
        ),
        activations=(TensorSlice("norm", 1, rows(6)),),
    )
    torch.manual_seed(0)
    groups = replace(hand_made(kind(), (group,), x).groups, activation_sizes={("norm", 1): 6})
    plan = build_plan(groups, {"hidden": np.array([1, 2, 5])})
    net = kind().eval()  # with a norm that is fresh
    defect(net)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    try:
        report = apply_and_verify(net, plan, example_inputs=x, **options)[1]
    finally:
        for name, tensor in net.state_dict().items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    assert report is not None
    return report


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("wrong", ["head.weight", "norm.bias", "norm.running_var"])
def test_a_wrong_group_is_found_although_the_weights_hide_it(
    defect: Callable[[Net], None], wrong: str
) -> None:
    with pytest.raises(VerificationError, match="is off by"):
        verified(Net, torch.randn(5, 3), wrong, defect=defect)


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_right_group_is_verified_by_values_that_say_something(
    defect: Callable[[Net], None],
) -> None:
    report = verified(Net, torch.randn(5, 3), defect=defect)
    assert report.told_by == ("drawn weights" if defect is dead_features else "outputs")
    assert report.max_relative_error < 1e-12
    assert not report.silent
    assert "norm.running_mean" in report.drawn
    assert ("head.weight" in report.drawn) == (defect is zero_head)


class Picky(Net):
    """Returns what exceeds a threshold that nothing reaches."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return {"found": y[y > 1e6]}


class Constant(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * 0


class HalfConstant(Net):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return {"y": y, "none": y[:0]}


def test_modules_tell_where_outputs_are_empty() -> None:
    report = verified(Picky, torch.randn(5, 3))
    assert report.told_by == "modules"
    assert report.silent == ("found",)
    assert "what modules return" in str(report)
    with pytest.raises(VerificationError, match="norm"):
        verified(Picky, torch.randn(5, 3), "norm.bias")


def test_an_output_that_says_nothing_beside_one_that_does_is_named() -> None:
    report = verified(HalfConstant, torch.randn(5, 3))
    assert report.told_by == "outputs"
    assert report.silent == ("none",)
    assert "none" in str(report)


class Opaque(nn.Module):
    """No module's output has the channels in the end, and what comes out is always zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x: Tensor) -> Any:
        return (x @ self.a).relu() @ self.b * 0


def test_where_nothing_was_verified_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def pruned(strict: bool) -> taskprune.PruneResult:
        return taskprune.prune(
            Opaque(),
            None,
            0.3,
            example_inputs=torch.randn(4, 3),
            importance="magnitude",
            settings=PruneSettings(strict=strict),
        )

    result = pruned(strict=False)
    report = result.report.verification
    assert report is not None
    assert report.told_by == "nothing"
    assert report.is_vacuous
    assert any("nothing was verified" in note.lower() for note in result.report.notes)
    assert any("nothing was verified" in text.lower() for text in caplog.messages)
    assert '"told_by": "nothing"' in result.report.to_json()
    with pytest.raises(VerificationError, match=r"[Nn]othing was verified"):
        pruned(strict=True)


@pytest.mark.parametrize("x", [torch.randn(5, 3), torch.randn(1, 3), torch.zeros(2, 3)])
def test_usual_outputs_cost_no_further_pass(x: Tensor) -> None:
    passes: list[bool] = []

    def forward(model: nn.Module, x: Tensor) -> Any:
        passes.append(True)
        return model(x)

    report = verified(Net, x, forward=forward)
    assert report.told_by == "outputs"
    assert len(passes) == (2 if len(x) == 5 else 4)


def test_constants_that_code_compares_with_do_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    class Switched(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("size", torch.full((2,), 3.0))

        def forward(self, x: Tensor) -> Any:
            assert isinstance(self.size, Tensor)
            if self.size.tolist() != [3.0, 3.0]:
                raise ValueError("another size")
            return super().forward(x)

    with caplog.at_level(logging.WARNING):
        report = verified(Switched, torch.randn(5, 3))
    assert report.told_by == "outputs"
    assert not caplog.messages


def test_choices_by_what_zeroing_makes_nan_tell_nothing() -> None:
    class Normed(nn.Module):
        """A filter that is divided by its norm, beside an output that no channel moves."""

        def __init__(self) -> None:
            super().__init__()
            self.wide, self.head = weight_norm(nn.Conv2d(3, 6, 1)), nn.Conv2d(6, 9, 1)

        def forward(self, x: Tensor) -> Any:
            y = self.head(self.wide(x))
            return {"constant": x.mean(), "scores": y, "best": y.argmax(1)}

    model, x = randomise_(Normed(), seed=0), torch.randn(2, 3, 8, 8)
    groups = couple(trace(model, x))
    plan = build_plan(groups, {groups.groups[0].name: np.array([1])})
    report = apply_and_verify(model, plan, example_inputs=x, groups=groups)[1]
    assert report is not None
    assert report.oracle == "masked"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_drawn_is_of_the_kind_of_what_it_stands_for(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 2).to(dtype)
    nn.init.zeros_(model.weight)
    values = Draws(model).as_written(lambda _, data: data)
    assert values("weight", model.weight.detach()).dtype == dtype
    assert bool(values("weight", model.weight.detach()).any())
