"""Stock vision architectures that nobody prepared: pruned to what was asked for, and exact."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from architectures import Architecture, architectures
from torch import nn

from taskprune import Budget, CouplingGroups, couple, score, solve, trace
from taskprune.cost import measure_params
from taskprune.importance import importance_by_name
from taskprune.rewrite import apply_and_verify
from taskprune.testing import assert_permutation_invariant, randomise_

LIBRARIES = ("torchvision", "timm")
VISION = [a for a in architectures() if a.name.partition("/")[0] in LIBRARIES]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Coupled:
    model: nn.Module
    inputs: Any
    groups: CouplingGroups


@pytest.fixture(scope="module", params=VISION, ids=str)
def coupled(request: pytest.FixtureRequest) -> Coupled:
    architecture: Architecture = request.param
    library = architecture.name.partition("/")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    torch.manual_seed(0)
    model = randomise_(architecture.make().double().eval(), seed=0)
    inputs = architecture.inputs().double()
    return Coupled(model, inputs, couple(trace(model, inputs)))


@pytest.mark.parametrize(("ratio", "importance"), [(0.3, "magnitude"), (0.5, "random")])
def test_the_asked_share_goes_and_nothing_else_changes(
    coupled: Coupled, ratio: float, importance: str
) -> None:
    model, groups, inputs = coupled.model, coupled.groups, coupled.inputs
    scores = score(model, groups, {}, [inputs], importance=importance_by_name(importance))
    plan = solve(groups, scores, Budget.from_ratio(ratio))
    smaller, report = apply_and_verify(model, plan, example_inputs=inputs, groups=groups)
    assert report is not None
    # Where the code takes statistics across channels by itself, they are permuted instead.
    assert report.oracle in ("masked", "permutation")
    assert report.max_relative_error < 1e-9
    assert 0 <= 1 - measure_params(smaller) / measure_params(model) - ratio < 0.005


def test_permuting_all_groups_leaves_outputs_unchanged(coupled: Coupled) -> None:
    error = assert_permutation_invariant(coupled.model, coupled.groups, None, coupled.inputs)
    assert error < 1e-9


def test_nothing_to_speak_of_stays_for_want_of_a_rule(coupled: Coupled) -> None:
    unknown = [g for g in coupled.groups.frozen if any(r.kind == "unknown" for r in g.reasons)]
    can_go = sum(group.n_channels for group in coupled.groups)
    stays = sum(group.n_channels for group in unknown)
    assert stays <= 0.01 * (can_go + stays), [(g.name, g.reasons) for g in unknown]
