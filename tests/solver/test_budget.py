"""Budgets: fractions that remain, absolute bounds, and what is neither."""

from __future__ import annotations

from typing import Any

import pytest

from taskprune.errors import InputError
from taskprune.solver.budget import Budget

ORIGINAL = {"params": 1000, "macs": 80_000}


def test_fractions_are_of_what_remains() -> None:
    assert Budget(params=0.6, macs=0.5).limits(ORIGINAL) == {"params": 600, "macs": 40_000}
    assert Budget(params=1.0).limits(ORIGINAL) == {"params": 1000}


def test_a_ratio_is_of_what_goes() -> None:
    assert Budget.from_ratio(0.327).limits(ORIGINAL) == {"params": 673}


def test_absolute_bounds_are_whole_numbers_and_macs_of_one_sample() -> None:
    budget = Budget(params=700, macs=3e3)
    assert budget.limits(ORIGINAL, batch_size=8) == {"params": 700, "macs": 24_000}


def test_a_budget_reads_as_words() -> None:
    assert str(Budget.from_ratio(0.327)) == "67.3 % of the parameters"
    assert str(Budget(params=3_000_000, macs=0.5)) == (
        "3,000,000 parameters and 50 % of the multiply-adds"
    )
    assert str(Budget(macs=2e9)) == "2,000,000,000 multiply-adds a sample"


def test_latency_is_bounded_in_milliseconds_and_memory_in_bytes() -> None:
    original = {"latency_ns": 20_000_000, "activation_memory": 4096}
    assert Budget(latency_ms=12.5).limits(original) == {"latency_ns": 12_500_000}
    assert Budget(latency_ms=0.6).limits(original) == {"latency_ns": 12_000_000}
    assert Budget(activation_memory=1024).limits(original, batch_size=4) == {
        "activation_memory": 1024
    }
    assert str(Budget(latency_ms=12.5, activation_memory=0.5)) == (
        "a latency of 12.5 ms and 50 % of the peak bytes of activations"
    )


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, 32.7, float("nan"), True, "0.3"])
def test_a_ratio_outside_of_zero_to_one_is_refused(ratio: Any) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        Budget.from_ratio(ratio)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"params": 0},
        {"params": -5},
        {"params": 1},
        {"params": 1.5},
        {"params": True},
        {"params": "3M"},
        {"latency_ms": 1},
        {"latency_ms": -2.5},
        {"activation_memory": 100.5},
        {"macs": float("inf")},
        {"macs": float("nan")},
    ],
    ids=str,
)
def test_bounds_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Budget(**arguments)
