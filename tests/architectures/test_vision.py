"""Stock vision architectures that nobody prepared: pruned to what was asked for, and exact."""

from __future__ import annotations

import importlib.util

import pytest
from architectures import Architecture, architectures
from stock_case import StockCase, pruned, stock_case

from taskprune.cost import measure_params
from taskprune.testing import assert_permutation_invariant

LIBRARIES = ("torchvision", "timm")
VISION = [a for a in architectures() if a.name.partition("/")[0] in LIBRARIES]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=VISION, ids=str)
def case(request: pytest.FixtureRequest) -> StockCase:
    """One architecture after the other, for all tests."""
    architecture: Architecture = request.param
    library = architecture.name.partition("/")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    return stock_case(architecture)


@pytest.mark.parametrize(("ratio", "importance"), [(0.3, "magnitude"), (0.5, "random")])
def test_the_asked_share_goes_and_nothing_else_changes(
    case: StockCase, ratio: float, importance: str
) -> None:
    smaller, _, report = pruned(case, ratio, importance=importance)
    # Where the code takes statistics across channels by itself, they are permuted instead.
    assert report.oracle in ("masked", "permutation")
    assert report.max_relative_error < 1e-9
    assert 0 <= 1 - measure_params(smaller) / measure_params(case.model) - ratio < 0.005


def test_permuting_all_groups_leaves_outputs_unchanged(case: StockCase) -> None:
    assert assert_permutation_invariant(case.model, case.groups, None, case.inputs) < 1e-9


def test_nothing_to_speak_of_stays_for_want_of_a_rule(case: StockCase) -> None:
    unknown = [g for g in case.groups.frozen if any(r.kind == "unknown" for r in g.reasons)]
    can_go = sum(group.n_channels for group in case.groups)
    stays = sum(group.n_channels for group in unknown)
    assert stays <= 0.01 * (can_go + stays), [(g.name, g.reasons) for g in unknown]
