"""The conformance kit passes right rules and says what is wrong with the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taskprune.coupling import RuleContext, channel_rule, registry
from taskprune.errors import InputError
from taskprune.testing import assert_rule_is_exact

MAPS = [(2, 6, 4, 3)]


@pytest.fixture
def operator() -> Iterator[Any]:
    """A custom operator `kit::op`; its rule, if a test registers one, is forgotten afterwards."""
    library = torch.library.Library("kit", "DEF")  # type: ignore[no-untyped-call]
    rules = dict(registry._RULES)
    yield lambda function, schema="(Tensor x) -> Tensor": _defined(library, function, schema)
    library._destroy()  # type: ignore[no-untyped-call]
    registry._RULES.clear()
    registry._RULES.update(rules)


def _defined(library: torch.library.Library, function: Any, schema: str) -> Any:
    library.define(f"op{schema}")  # type: ignore[no-untyped-call]
    library.impl("op", function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    return torch.ops.kit.op.default


def as_it_comes(ctx: RuleContext) -> None:
    ctx.produce(ctx.axes("x"), zero=True)


def test_an_elementwise_rule_passes(operator: Any) -> None:
    op = operator(lambda x: x * torch.sigmoid(x))
    channel_rule(op)(as_it_comes)
    report = assert_rule_is_exact(op, MAPS, [(3, 5, 7)])
    assert {check.net for check in report.checks} >= {"between layers", "concatenated", "twice"}
    assert {check.mode for check in report.checks} == {"eval", "train"}
    assert report.max_relative_error < 1e-12
    assert "exact" in str(report)


def test_two_inputs_must_be_tied(operator: Any) -> None:
    op = operator(lambda x, y: x * y, "(Tensor x, Tensor y) -> Tensor")

    @channel_rule(op)
    def half_a_rule(ctx: RuleContext) -> None:
        ctx.produce(ctx.axes("x"), zero=True)

    with pytest.raises(AssertionError, match="between layers"):
        assert_rule_is_exact(op, [*MAPS, *MAPS])

    registry._RULES.pop(str(op))

    @channel_rule(op)
    def whole_rule(ctx: RuleContext) -> None:
        ctx.tie(ctx.axes("x")[1], ctx.axes("y")[1])
        ctx.produce(ctx.axes("x"), zero=True)

    assert_rule_is_exact(op, [*MAPS, *MAPS])


def test_no_rule_is_named(operator: Any) -> None:
    op = operator(lambda x: x * 2)
    with pytest.raises(AssertionError, match=r"no rule.*\n.*kit\.op\.default"):
        assert_rule_is_exact(op, MAPS)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x.flip(1), "moves the output"),
        (lambda x: x.roll(1, 1), "moves the output"),
        (lambda x: x.softmax(1), "not the same as zeroing"),
        (lambda x: x + 1.0, "not the same as zeroing"),
        (lambda x: x[:, :3].clone(), "contradicts"),
    ],
    ids=["order", "shift", "statistic", "zero", "size"],
)
def test_a_wrong_rule_is_caught(operator: Any, function: Any, says: str) -> None:
    op = operator(function)
    channel_rule(op)(as_it_comes)
    with pytest.raises(AssertionError, match=says):
        assert_rule_is_exact(op, MAPS)


def test_a_rule_that_freezes_everything_is_told_apart(operator: Any) -> None:
    op = operator(lambda x: x * 2)

    @channel_rule(op)
    def freeze(ctx: RuleContext) -> None:
        for axis in ctx.axes("x"):
            ctx.freeze(axis, "structure", "is kept for no reason")
        ctx.produce_fixed()

    with pytest.raises(AssertionError, match="kept for no reason"):
        assert_rule_is_exact(op, MAPS)
    report = assert_rule_is_exact(op, MAPS, may_freeze=True)
    assert not any(check.n_channels for check in report.checks)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm2d(6), (2, 6, 4, 3)),
        (nn.GroupNorm(2, 6), (2, 6, 4, 3)),
        (nn.Conv2d(6, 5, 3), (2, 6, 4, 3)),
        (nn.PReLU(6), (2, 6, 4)),
        (nn.Dropout(), (2, 6, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_modules_with_parameters_pass_and_stay_as_they_are(layer: nn.Module, shape: Any) -> None:
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    flags = [module.training for module in layer.modules()]
    assert_rule_is_exact(layer, [shape])
    assert [module.training for module in layer.modules()] == flags
    assert all(torch.equal(before[name], t) for name, t in layer.state_dict().items())


def test_channels_may_come_last() -> None:
    assert_rule_is_exact(nn.LayerNorm(6), [(2, 5, 6)], channel_dim=2)


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        assert_rule_is_exact(torch.relu)
    with pytest.raises(InputError, match="takes tensors"):
        assert_rule_is_exact(nn.Linear(3, 2), [(2, 6)])
    with pytest.raises(InputError, match="returns one tensor"):
        assert_rule_is_exact(lambda x: x.chunk(2, 1), [(2, 6)])


def test_the_generator_of_random_numbers_is_left_alone() -> None:
    before = torch.get_rng_state()
    assert_rule_is_exact(lambda x: Tensor.relu(x), [(2, 6, 3)])
    assert torch.equal(torch.get_rng_state(), before)
