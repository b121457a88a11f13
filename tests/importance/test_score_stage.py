"""The stage ``score``: names, plain functions, and what is refused."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_made import TRUNK, batches, two_task_groups, two_task_net, two_tasks
from torch import Tensor, nn

import taskprune
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError
from taskprune.importance import (
    ChannelScores,
    Evidence,
    Importance,
    MagnitudeImportance,
    RandomImportance,
    TaskTaylorImportance,
    criteria_by_name,
    importance_by_name,
    importance_names,
    score,
)
from taskprune.importance.aggregation import maximum
from taskprune.importance.criteria_by_name import built_in_names
from taskprune.testing import unchanged

NET = two_task_net()
GROUPS = two_task_groups(NET)


# What looks across sensors has no use for a net with one.
ONE_SENSOR = [name for name in importance_names() if name != "altermoma"]


@pytest.mark.parametrize("name", ONE_SENSOR)
def test_every_named_criterion_scores_every_channel(name: str) -> None:
    found = score(NET, GROUPS, two_tasks(), batches(2), importance=name)
    assert found.criterion == name
    for group in GROUPS:
        assert found[group.name].total.shape == (group.n_channels,)
        assert found[group.name].per_task.shape == (len(found.tasks), group.n_channels)
        assert found[group.name].total.dtype == torch.float64
        assert torch.isfinite(found[group.name].total).all()


@pytest.mark.parametrize(
    "importance",
    ["task_change", "task_taylor", "output_change", TaskTaylorImportance(aggregate=maximum)],
    ids=["task_change", "task_taylor", "output_change", "maximum"],
)
def test_scores_of_other_weights_are_those_of_tasks_that_have_them(
    importance: str | Importance,
) -> None:
    net, data = two_task_net(), batches(3)
    groups = two_task_groups(net)
    weights = {"first": 3.0, "second": 0.5}
    weighed = {n: replace(t, weight=weights[n]) for n, t in two_tasks().items()}
    found = score(net, groups, two_tasks(), data, importance=importance)
    expected = score(net, groups, weighed, data, importance=importance)
    assert found.reweighted is not None
    again = pickle.loads(pickle.dumps(found)).reweighted(weights)
    for mine in (found.reweighted(weights), again):
        for group in groups:
            for part in ("total", "per_task", "pair_conflict", "loss_increase"):
                torch.testing.assert_close(
                    getattr(mine[group.name], part),
                    getattr(expected[group.name], part),
                    rtol=1e-12,
                    atol=0,
                )


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"`tailor`.*magnitude, .*task_taylor, taylor"):
        importance_by_name("tailor")


def test_installed_packages_can_offer_criteria(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint(
        name="seeded",
        value="taskprune.importance:RandomImportance",
        group=criteria_by_name.ENTRY_POINTS,
    )

    def offered(*, group: str) -> EntryPoints:
        assert group == "taskprune.importance"
        return EntryPoints([point])

    monkeypatch.setattr(criteria_by_name, "entry_points", offered)
    assert importance_by_name("seeded") == RandomImportance()
    assert importance_names()[-1] == "seeded"


def plain_criterion(_model: nn.Module, groups: CouplingGroups, _evidence: Evidence) -> Any:
    return {g.name: torch.ones(g.n_channels) for g in groups}


def no_criterion() -> None:
    """What a package could offer by mistake."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_package.criteria:Mine", "cannot be imported: ModuleNotFoundError.*no_such"),
        ("taskprune.importance:Mine", "cannot be imported: AttributeError"),
        (f"{__name__}:plain_criterion", "call without arguments.*3 required positional arguments"),
        (f"{__name__}:no_criterion", "returns a criterion.*Found NoneType"),
    ],
)
def test_what_a_package_offers_wrongly_is_named(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint(name="mine", value=value, group=criteria_by_name.ENTRY_POINTS)
    monkeypatch.setattr(criteria_by_name, "entry_points", lambda **_: EntryPoints([point]))
    with pytest.raises(InputError, match=message) as caught:
        score(NET, GROUPS, importance="mine")
    assert f"`mine = {value}`" in str(caught.value)


def test_a_plain_function_is_a_criterion() -> None:
    def first_first(model: nn.Module, groups: CouplingGroups, evidence: Evidence) -> Any:
        return {g.name: torch.arange(g.n_channels) for g in groups}

    found = score(NET, GROUPS, importance=first_first)
    assert found.criterion == "first_first"
    assert found.tasks == ("all",)
    assert found[TRUNK].total.tolist() == list(range(8))
    assert found[TRUNK].total.dtype == torch.float64


def test_rows_of_a_plain_function_are_tasks_and_are_averaged() -> None:
    def rows(model: nn.Module, groups: CouplingGroups, evidence: Evidence) -> Any:
        return {
            g.name: torch.stack([torch.ones(g.n_channels), torch.zeros(g.n_channels)])
            for g in groups
        }

    found = score(NET, GROUPS, two_tasks(), batches(1), importance=rows)
    assert found.tasks == ("first", "second")
    assert found[TRUNK].total.tolist() == [0.5] * 8


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_criterion_does_to_the_model_is_undone(fails: bool) -> None:
    """As criteria of one's own do it: in training mode, with hooks, by ``backward``."""
    net: Any = two_task_net().eval()
    net.norm.weight.grad = torch.full_like(net.norm.weight, 2.0)
    net.stem.weight.register_hook(lambda _: None)
    net.stem.bias.requires_grad_(False)

    def careless(model: Any, groups: CouplingGroups, evidence: Evidence) -> Any:
        model.train().requires_grad_(True)
        seen: list[str] = []
        model.seen = seen
        for name, parameter in model.named_parameters():
            parameter.register_hook(lambda _, name=name: seen.append(name))
        for module in model.modules():
            module.register_forward_hook(lambda *_: None)
        for batch in evidence.batches:
            outputs = evidence.forward(model, batch)
            for task in evidence.tasks.values():
                loss = task.loss(outputs, batch)
                assert loss is not None
                torch.autograd.backward(loss, retain_graph=True)
        assert seen
        if fails:
            raise ZeroDivisionError
        return {g.name: torch.ones(g.n_channels) for g in groups}

    failure = pytest.raises(ZeroDivisionError) if fails else nullcontext()
    with unchanged(net, but=("writes",)), failure:
        score(net, two_task_groups(net), two_tasks(), batches(2), importance=careless)


def test_a_criterion_may_look_at_gradients_that_are_there() -> None:
    net = two_task_net()
    for number, parameter in enumerate(net.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))

    def reading(model: nn.Module, groups: CouplingGroups, _evidence: Evidence) -> Any:
        slope = sum(float(p.grad.sum()) for p in model.parameters() if p.grad is not None)
        return {g.name: torch.full((g.n_channels,), slope) for g in groups}

    found = score(net, two_task_groups(net), importance=reading)
    assert float(found[TRUNK].total[0]) > 0


def returning(value: Any) -> Any:
    return lambda _model, _groups, _evidence: value


def some(replaced: Any) -> dict[str, Any]:
    return {g.name: torch.ones(g.n_channels) for g in GROUPS} | {TRUNK: replaced}


BAD: dict[str, tuple[Any, str]] = {
    "nothing": (None, "must return `ChannelScores` or a mapping"),
    "too few": (some(torch.ones(7)), r"shape \(1, 7\).*Expected \(1, 8\)"),
    "nan": (some(torch.full((8,), float("nan"))), r"not finite.*protect"),
    "infinite": (some(torch.full((8,), float("inf"))), "not finite"),
    "a list": (some([1.0] * 8), "must return tensors"),
    "a group missing": ({TRUNK: torch.ones(8)}, "no scores for group `first.0`"),
    "three rows": ({g.name: torch.ones(3, g.n_channels) for g in GROUPS}, "3 rows.*2 tasks"),
}


@pytest.mark.parametrize(("value", "message"), BAD.values(), ids=BAD)
def test_bad_scores_are_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score(NET, GROUPS, two_tasks(), batches(1), importance=returning(value))


def test_a_record_with_a_wrong_shape_is_refused() -> None:
    found = score(NET, GROUPS, importance="magnitude")
    bad = ChannelScores("bad", ("one", "two"), found.groups)
    with pytest.raises(InputError, match=r"Expected \(2, 8\)"):
        score(NET, GROUPS, importance=returning(bad))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"importance": 3}, "name of a criterion"),
        ({"importance": MagnitudeImportance}, r"call it, `importance=MagnitudeImportance\(\)`"),
        ({"n_batches": 0}, "at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        score(NET, GROUPS, two_tasks(), batches(1), **arguments)


def test_magnitude_is_the_norm_over_all_parameter_entries_of_a_channel() -> None:
    found = score(NET, GROUPS, importance=MagnitudeImportance())
    group = GROUPS[TRUNK]
    for channel in range(group.n_channels):
        total = 0.0
        for name, parameter in NET.named_parameters():
            mask = torch.zeros_like(parameter)
            for member in group.members:
                if member.name == name:
                    mask.select(member.dim, int(member.index[channel, 0])).fill_(1)
            total += float((parameter.detach() * mask).square().sum())
        assert float(found[TRUNK].total[channel]) == pytest.approx(total**0.5, rel=1e-6)


def test_random_scores_depend_on_the_seed_alone() -> None:
    one, same, other = (
        score(NET, GROUPS, importance=RandomImportance(seed))[TRUNK].total for seed in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_cosprune_is_one_for_equal_and_minus_one_for_opposite_tasks() -> None:
    tasks = two_tasks()
    loss = tasks["second"].loss

    def opposite(outputs: Any, batch: Any) -> Tensor:
        value = loss(outputs, batch)
        assert value is not None
        return -value

    for other, cosine in ((loss, 1.0), (opposite, -1.0)):
        pair = {"one": tasks["second"], "two": type(tasks["second"])(other)}
        found = score(NET, GROUPS, pair, batches(2), importance="cosprune")
        torch.testing.assert_close(
            found[TRUNK].total, torch.full((8,), cosine, dtype=torch.float64), rtol=1e-5, atol=0
        )


def test_the_engine_imports_no_criterion() -> None:
    engine = Path(taskprune.importance.__file__).parent
    for file in engine.glob("*.py"):
        if file.name != "__init__.py":  # what users import by its own name
            assert "importance.criteria." not in file.read_text(), file.name
    assert {*built_in_names()} < {file.stem for file in (engine / "criteria").glob("*.py")}
