"""Sizes with origins count like integers and remember where they came from."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskprune.graph.sizes import (
    AttributeOf,
    Computed,
    Constant,
    DimOf,
    Relation,
    SizeExpr,
    TracedInt,
    expr_of,
    is_literal,
    leaves,
)


class Log:
    def __init__(self) -> None:
        self.guards: list[tuple[SizeExpr, str, SizeExpr]] = []
        self.escapes: list[SizeExpr] = []

    def guard(self, left: SizeExpr, right: SizeExpr, relation: Relation) -> None:
        self.guards.append((left, relation, right))

    def escape(self, expr: SizeExpr) -> None:
        self.escapes.append(expr)


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}
WIDTH = DimOf(3, 1)


@given(a=st.integers(0, 1000), b=st.integers(1, 1000), name=st.sampled_from(sorted(OPERATORS)))
def test_arithmetic_equals_that_of_integers_and_keeps_the_origin(a: int, b: int, name: str) -> None:
    size = TracedInt(a, WIDTH, Log())
    for result, expected, expr in (
        (OPERATORS[name](size, b), OPERATORS[name](a, b), Computed(name, WIDTH, Constant(b))),  # type: ignore[arg-type]
        (OPERATORS[name](a, TracedInt(b, WIDTH, Log())), OPERATORS[name](a, b), None),
    ):
        assert int.__eq__(result, expected)
        assert isinstance(result, TracedInt)
        assert expr is None or result.expr == expr


@pytest.mark.parametrize(
    "use",
    [
        *(math.sqrt, float, int, hash, lambda n: n / 2, lambda n: n**-0.5, lambda n: n * 0.5),
        *(lambda n: n & 3, lambda n: 3 | n, lambda n: n ^ 1, lambda n: n < 0.5),
    ],
)
def test_other_uses_are_reported_and_lose_the_origin(use: Callable[[Any], Any]) -> None:
    log = Log()
    result = use(TracedInt(16, WIDTH, log))
    assert log.escapes == [WIDTH]
    assert not isinstance(result, TracedInt)


@given(a=st.integers(0, 9), b=st.integers(0, 9))
def test_comparisons_are_reported_with_their_outcome(a: int, b: int) -> None:
    relations = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le}
    uses = [*relations.values(), operator.gt, operator.ge]
    for use in uses:
        log = Log()
        assert use(TracedInt(a, WIDTH, log), b) is use(a, b)
        assert use(b, TracedInt(a, WIDTH, log)) is use(b, a)
        assert len(log.guards) == 2
        for left, relation, right in log.guards:
            assert {left, right} == {WIDTH, Constant(b)}
            values = (a, b) if left == WIDTH else (b, a)
            assert relations[relation](*values)


def test_truth_of_a_size_is_a_comparison_with_zero() -> None:
    log = Log()
    assert TracedInt(16, WIDTH, log)
    assert [relation for _, relation, _ in log.guards] == ["!="]


@pytest.mark.parametrize(
    ("use", "expr"),
    [
        (lambda n: n >> 1, Computed("//", WIDTH, Constant(2))),
        (lambda n: n << 2, Computed("*", WIDTH, Constant(4))),
        (lambda n: divmod(n, 3)[0], Computed("//", WIDTH, Constant(3))),
        (lambda n: divmod(n, 3)[1], Computed("%", WIDTH, Constant(3))),
        (round, WIDTH),
        (math.floor, WIDTH),
        (math.ceil, WIDTH),
        (math.trunc, WIDTH),
        (abs, WIDTH),
    ],
)
def test_other_spellings_keep_the_origin(use: Callable[[Any], Any], expr: SizeExpr) -> None:
    result = use(TracedInt(16, WIDTH, Log()))
    assert isinstance(result, TracedInt)
    assert result.expr == expr


def test_copies_are_plain_integers() -> None:
    size = TracedInt(16, WIDTH, Log())
    assert type(copy.deepcopy(size)) is int
    assert type(pickle.loads(pickle.dumps(size))) is int
    assert {16: "found"}[size] == "found"


def test_leaves_are_the_origins_in_order() -> None:
    heads = AttributeOf("attention", ("heads",))
    log = Log()
    size = TracedInt(16, WIDTH, log) // TracedInt(4, heads, log) + 1
    assert list(leaves(size.expr)) == [WIDTH, heads, Constant(1)]
    assert str(size.expr) == "((shape[1] // attention.heads) + 1)"
    assert not is_literal(size.expr)
    assert is_literal(expr_of(7, log))


def test_what_another_trace_left_behind_is_a_plain_number() -> None:
    log = Log()
    size = TracedInt(16, WIDTH, log) * TracedInt(4, DimOf(7, 0), Log())
    assert list(leaves(size.expr)) == [WIDTH, Constant(4)]
    assert size > TracedInt(4, DimOf(7, 0), Log())
    assert log.guards == [(Constant(4), "<", Computed("*", WIDTH, Constant(4)))]
