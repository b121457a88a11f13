"""Every built-in criterion conforms, and the kit notices what does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from zoo import ZOO, NetCase

from taskprune.calling.forward import call_inputs
from taskprune.calling.task import Task
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError
from taskprune.importance import (
    CosineConflict,
    CrossPruneImportance,
    Evidence,
    Importance,
    MagnitudeImportance,
    TaskTaylorImportance,
    TorchPruningImportance,
    aggregation,
    as_they_are,
    importance_by_name,
)
from taskprune.importance.criteria_by_name import built_in_names
from taskprune.testing import (
    ImportanceCase,
    assert_importance_conforms,
    importance_cases,
    randomise_,
    sensor_cases,
)

BUILT_IN = built_in_names()

COMPOSED: dict[str, Callable[[], Importance]] = {
    "cosine conflict": lambda: TaskTaylorImportance(conflict=CosineConflict()),
    "maximum": lambda: TaskTaylorImportance(aggregate=aggregation.maximum),
    "losses as they are": lambda: TaskTaylorImportance(normalise=as_they_are),
    "Torch-Pruning": lambda: TorchPruningImportance(tp.importance.GroupTaylorImportance()),
}


ACROSS_SENSORS = ("altermoma",)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_criteria_conform(name: str) -> None:
    cases = (*sensor_cases(1), *sensor_cases(3)) if name in ACROSS_SENSORS else None
    assert_importance_conforms(
        importance_by_name(name), cases=cases, follows_channels=name != "random"
    )


def test_crossprune_conforms() -> None:
    criterion = CrossPruneImportance(None, fused="fusion", removed=0.4, steps=2)
    assert_importance_conforms(criterion, cases=sensor_cases(2))


@pytest.mark.parametrize("name", ACROSS_SENSORS)
def test_criteria_across_sensors_refuse_a_single_one(name: str) -> None:
    with pytest.raises(InputError, match="takes at least two"):
        assert_importance_conforms(importance_by_name(name))


@pytest.mark.parametrize("make", COMPOSED.values(), ids=COMPOSED)
def test_composed_criteria_conform(make: Callable[[], Importance]) -> None:
    assert_importance_conforms(make())


# One net for each way in which a layer can read, as far as criteria can tell them apart.
NETS = [case for case in ZOO if case.channels]
FOR_ANY_LAYER = [name for name in BUILT_IN if name not in ACROSS_SENSORS]


def zoo_case(case: NetCase, n_tasks: int) -> ImportanceCase:
    """The zoo has no losses: here a task is a pull of all outputs towards a number of its own."""

    def pull(target: float) -> Callable[[Any, Any], Tensor]:
        def loss(outputs: Any, _batch: Any) -> Tensor:
            leaves = [t for t in torch.utils._pytree.tree_leaves(outputs) if t.is_floating_point()]
            parts = [(leaf - target).square().mean() for leaf in leaves]
            return torch.stack(parts).sum() + target

        return loss

    tasks = {f"task{i}": Task(pull(1.0 + i)) for i in range(n_tasks)}
    net = randomise_(case.make().double().eval(), seed=0)
    return ImportanceCase(net, tasks, [case.inputs()], forward=call_inputs)


@pytest.mark.parametrize("n_tasks", [1, 3])
@pytest.mark.parametrize("case", NETS, ids=str)
def test_the_default_conforms_on_the_zoo(case: NetCase, n_tasks: int) -> None:
    assert_importance_conforms(TaskTaylorImportance(), cases=[zoo_case(case, n_tasks)])


@pytest.mark.parametrize("name", FOR_ANY_LAYER)
def test_built_in_criteria_conform_on_nets_of_the_zoo(name: str) -> None:
    cases = [zoo_case(case, 3) for case in NETS[::8]]
    assert_importance_conforms(
        importance_by_name(name), cases=cases, follows_channels=name != "random"
    )


def plain(model: nn.Module, groups: CouplingGroups, evidence: Evidence) -> dict[str, Tensor]:
    found = MagnitudeImportance()(model, groups, evidence)
    return {name: own.total for name, own in found.groups.items()}


def drawing(model: nn.Module, groups: CouplingGroups, evidence: Evidence) -> dict[str, Tensor]:
    return {group.name: torch.rand(group.n_channels) for group in groups}


def by_place(model: nn.Module, groups: CouplingGroups, evidence: Evidence) -> dict[str, Tensor]:
    return {group.name: torch.arange(group.n_channels) for group in groups}


def training(model: nn.Module, groups: CouplingGroups, evidence: Evidence) -> dict[str, Tensor]:
    model.eval()
    return plain(model, groups, evidence)


def leaving_gradients(
    model: nn.Module, groups: CouplingGroups, evidence: Evidence
) -> dict[str, Tensor]:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return plain(model, groups, evidence)


def hooking(model: nn.Module, groups: CouplingGroups, evidence: Evidence) -> dict[str, Tensor]:
    model.register_forward_hook(lambda *_: None)
    return plain(model, groups, evidence)


def nudging(model: nn.Module, groups: CouplingGroups, evidence: Evidence) -> dict[str, Tensor]:
    scores = plain(model, groups, evidence)
    with torch.no_grad():
        next(iter(model.parameters())).add_(1e-9)
    return scores


WRONG: dict[str, tuple[Importance, str]] = {
    "draws": (drawing, "changed the random generators"),
    "by place": (by_place, "Permuting the channels changed `total`"),
    "flags": (training, "changed training flags"),
    "gradients": (leaving_gradients, "changed gradients"),
    "hooks": (hooking, "changed hooks"),
    "weights": (nudging, "changed parameters or buffers"),
}


@pytest.mark.parametrize(("criterion", "message"), WRONG.values(), ids=WRONG)
def test_the_kit_notices(criterion: Importance, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_importance_conforms(criterion)


def test_a_plain_function_conforms() -> None:
    assert_importance_conforms(plain)


def test_the_kit_notices_what_changes_from_call_to_call() -> None:
    calls: list[int] = []

    def counting(model: nn.Module, groups: CouplingGroups, evidence: Evidence) -> dict[str, Tensor]:
        calls.append(1)
        return {name: own + len(calls) for name, own in plain(model, groups, evidence).items()}

    with pytest.raises(AssertionError, match="A second call changed"):
        assert_importance_conforms(counting)


def test_cases_can_be_ones_own() -> None:
    (case, _) = importance_cases(2)
    assert_importance_conforms(plain, cases=[replace(case, batches=case.batches[:1])])
