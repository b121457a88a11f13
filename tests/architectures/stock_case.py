"""A stock architecture taken through the stages, once for all tests that look at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from architectures import Architecture
from torch import Tensor, nn

from taskprune.calling.forward import call_inputs
from taskprune.calling.outputs import flatten_outputs
from taskprune.coupling import CouplingGroups, couple
from taskprune.graph import trace
from taskprune.importance import importance_by_name, score
from taskprune.plan.plan import PruningPlan
from taskprune.rewrite import VerificationReport, apply_and_verify
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.testing import randomise_


@dataclass(frozen=True, eq=False)
class StockCase:
    """A model with random weights and statistics, and its groups."""

    name: str
    model: nn.Module
    inputs: Any
    groups: CouplingGroups


def stock_case(architecture: Architecture) -> StockCase:
    """Build, trace and couple; everything is seeded."""
    torch.manual_seed(0)
    model = randomise_(architecture.make().eval(), seed=0)
    inputs = architecture.inputs()
    return StockCase(architecture.name, model, inputs, couple(trace(model, inputs)))


def pruned(
    case: StockCase, ratio: float, *, importance: str = "random"
) -> tuple[nn.Module, PruningPlan, VerificationReport]:
    """Remove a share of the parameters by a criterion that needs neither tasks nor data.

    The result has been compared with the masked original.
    """
    scores = score(case.model, case.groups, {}, [], importance=importance_by_name(importance))
    plan = solve(case.groups, scores, Budget.from_ratio(ratio))
    smaller, report = apply_and_verify(
        case.model, plan, example_inputs=case.inputs, groups=case.groups
    )
    assert report is not None
    return smaller, plan, report


def outputs_of(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Return the outputs by path, with gradients."""
    torch.manual_seed(0)
    return flatten_outputs(call_inputs(model, inputs))


def shared_names(model: nn.Module) -> set[frozenset[str]]:
    """Return the sets of names under which one parameter is known."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(found) for found in names.values() if len(found) > 1}
