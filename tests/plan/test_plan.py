"""A plan is data: it survives JSON, prints within a page, and two of them compose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from taskprune.coupling.groups import (
    AttributeForm,
    CouplingGroup,
    CouplingGroups,
    LinearForm,
    TensorSlice,
)
from taskprune.errors import InputError, PlanMismatchError
from taskprune.files import sealed
from taskprune.plan.composition import compose
from taskprune.plan.decisions import AttributeChange, GroupDecision, KeptEntries
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.plan.tables import numbers_in, ranges_text

NAMES = ("trunk", "head")


def chain(first: int, second: int) -> CouplingGroups:
    """Three layers one after the other; the second group has two entries per channel."""
    one = np.arange(first, dtype=np.int64)[:, None]
    two = np.arange(2 * second, dtype=np.int64).reshape(2, second).T
    trunk = CouplingGroup(
        "trunk",
        first,
        (TensorSlice("a.weight", 0, one), TensorSlice("b.weight", 1, one, False)),
        (TensorSlice("a", 1, one),),
        frozenset({"x", "y"}),
    )
    head = CouplingGroup(
        "head",
        second,
        (TensorSlice("b.weight", 0, two), TensorSlice("c.weight", 1, two, False)),
        (TensorSlice("b", 1, two),),
        frozenset({"x"}),
        ("aten.mean.dim at c",),
    )
    return CouplingGroups(
        (trunk, head),
        (),
        {"a.weight": (first, 3), "b.weight": (2 * second, first), "c.weight": (4, 2 * second)},
        frozenset({"a.weight", "b.weight", "c.weight"}),
        attributes=(AttributeForm("b", ("width", 0), LinearForm(1, {"head": 2})),),
        activation_sizes={("a", 1): first, ("b", 1): 2 * second},
        tasks=("x", "y"),
    )


def drops(groups: CouplingGroups) -> st.SearchStrategy[dict[str, np.ndarray]]:
    def of(n: int) -> st.SearchStrategy[np.ndarray]:
        numbers = st.sets(st.integers(0, n - 1), max_size=n - 1)
        return numbers.map(lambda chosen: np.array(sorted(chosen), dtype=np.int64))

    return st.fixed_dictionaries({g.name: of(g.n_channels) for g in groups})


@st.composite
def plans(draw: st.DrawFn) -> PruningPlan:
    groups = chain(draw(st.integers(1, 9)), draw(st.integers(1, 5)))
    return build_plan(groups, draw(drops(groups)), {"params": (draw(st.integers(1, 99)), 7)})


@given(plans())
@settings(deadline=None)
def test_json_keeps_everything(plan: PruningPlan) -> None:
    assert PruningPlan.from_json(plan.to_json()) == plan


@given(st.sets(st.integers(0, 60)))
def test_ranges_keep_every_number(numbers: set[int]) -> None:
    ascending = tuple(sorted(numbers))
    assert numbers_in(ranges_text(ascending), 61, most=61) == ascending


def test_json_has_a_line_per_record() -> None:
    groups = chain(8, 4)
    one = build_plan(groups, {"trunk": np.array([1])}).to_json().splitlines()
    two = build_plan(groups, {"trunk": np.array([2])}).to_json().splitlines()
    changed = [a for a, b in zip(one, two, strict=True) if a != b]
    assert len(changed) == 5  # the decision, two tensors, one activation, the checksum
    assert '"drop": "1"' in changed[0]
    assert '"keep": "0 2-7"' in changed[1]


def test_files_keep_everything(tmp_path: Path) -> None:
    plan = build_plan(chain(8, 4), {"head": np.array([0, 3])}, {"macs": (10, 4)})
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 99}', "null", '{"format": 1, "groups": [{"name": 3}]}'],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        PruningPlan.from_json(text)


def test_damaged_numbers_are_refused() -> None:
    text = build_plan(chain(8, 4), {"trunk": np.array([2])}).to_json()
    for numbers in ("0-1 3-9", "0-1 x", "3-7 0-1", "0-1 7-3"):
        content = json.loads(text.replace("0-1 3-7", numbers))
        content.pop("sha256")
        with pytest.raises(InputError, match="ascend within 0 to 7"):
            PruningPlan.from_json(json.dumps(sealed(content)))
    with pytest.raises(InputError, match="checksum differs"):
        PruningPlan.from_json(text.replace("0-1 3-7", "0-1 3-6"))


@given(plans())
@settings(deadline=None)
def test_empty_plan_is_the_identity_of_composition(plan: PruningPlan) -> None:
    before = PruningPlan(
        tuple(GroupDecision(d.name, d.n_channels, (), d.tasks, d.crossed_by) for d in plan.groups),
        (),
        (),
        (),
        plan.shapes,
        {"params": (plan.costs["params"][0], plan.costs["params"][0])},
    )
    assert compose(before, plan) == plan


@given(st.data())
@settings(deadline=None)
def test_two_plans_are_one(data: st.DataObject) -> None:
    groups = chain(data.draw(st.integers(2, 9)), data.draw(st.integers(2, 5)))
    first = build_plan(groups, data.draw(drops(groups)), {"params": (90, 50), "macs": (8, 6)})
    smaller = chain(first.kept["trunk"], first.kept["head"])
    second = build_plan(smaller, data.draw(drops(smaller)), {"params": (50, 20), "macs": (5, 4)})
    both = compose(first, second)
    # Dropping the same channels at once, found by following the original numbers through both.
    at_once = {}
    for name in NAMES:
        left = [c for c in range(groups[name].n_channels) if c not in first.drop.get(name, ())]
        gone = [left[c] for c in second.drop.get(name, ())]
        at_once[name] = np.array(sorted((*first.drop.get(name, ()), *gone)), dtype=np.int64)
    direct = build_plan(groups, at_once)
    assert both.groups == direct.groups
    assert both.tensors == direct.tensors
    assert both.activations == direct.activations
    assert both.pruned_shapes == second.pruned_shapes
    stored = {(a.module, a.path): a.value for a in direct.attributes}
    assert all(stored[a.module, a.path] == a.value for a in both.attributes)
    assert both.costs == {"params": (90, 20)}


def test_composition_needs_plans_of_successive_models() -> None:
    first = build_plan(chain(8, 4), {"trunk": np.array([0])})
    with pytest.raises(PlanMismatchError, match=r"a\.weight.*\(7, 3\).*\(8, 3\)"):
        compose(first, first)


def test_text_fits_a_page_and_names_groups_and_tasks() -> None:
    groups = chain(8, 4)
    plan = build_plan(groups, {"trunk": np.array([0, 5])}, {"params": (1000, 750)})
    text = str(plan)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "drops 2 of 12 channels, in 1 of 2 groups; parameters 1,000 to 750 (-25.0%)" in text
    row = next(line for line in text.splitlines() if "trunk" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "trunk",
        "6",
        "8",
        "25%",
        "x, y",
    ]
    assert plan.summary() in repr(plan)
    assert len(repr(plan).splitlines()) == 1
    console = Console(width=90)
    with console.capture() as capture:
        console.print(plan)
    assert "trunk" in capture.get()


def test_long_names_stay_whole() -> None:
    name = ".".join(["stage"] * 40)
    plan = PruningPlan((GroupDecision(name, 4, (1,), ("task",) * 30),), (), (), (), {})
    lines = str(plan).splitlines()
    assert max(len(line) for line in lines) <= 100
    cells = "".join(line.split("│")[1].strip() for line in lines if line.count("│") > 2)
    assert name in cells


def test_changes_name_module_path_and_values() -> None:
    plan = build_plan(chain(8, 4), {"head": np.array([1])})
    assert plan.attributes == (AttributeChange("b", ("width", 0), 9, 7),)
    assert plan.tensors == (
        KeptEntries("b.weight", 0, 8, (0, 2, 3, 4, 6, 7)),
        KeptEntries("c.weight", 1, 8, (0, 2, 3, 4, 6, 7)),
    )
    assert json.loads(plan.to_json())["format"] == 2


def test_groups_keep_at_least_one_channel() -> None:
    with pytest.raises(InputError, match="keep at least 1 of its 2"):
        build_plan(chain(2, 2), {"trunk": np.array([0, 1])})
    with pytest.raises(InputError, match="no prunable group `stem`"):
        build_plan(chain(2, 2), {"stem": np.array([0])})
    with pytest.raises(InputError, match="0 to 1"):
        build_plan(chain(2, 2), {"trunk": np.array([2])})
