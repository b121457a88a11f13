"""A plan file says what was saved, or is refused: whatever befell it, or whoever wrote it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged_files import HOSTILE, damaged_bytes, damaged_json, outcomes, put
from torch import Tensor, nn

import taskprune
from taskprune.errors import CheckpointError, InputError, TaskPruneError
from taskprune.files import sealed
from taskprune.plan.plan import PruningPlan
from taskprune.replace import ModuleReplacement
from taskprune.rewrite import apply_plan


class Net(nn.Module):
    """Stored sizes, attention that is replaced, a group that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.wide = nn.Linear(8, 12)
        self.head = nn.Linear(12, 4)
        self.width, self.sizes = 12, (12, 1)

    @property
    def fixed(self) -> int:
        return 12

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).relu().flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        result: Tensor = self.head(self.wide(tokens).relu().mean(1).view(-1, self.width))
        return result


CARRIED_OUT = ("tensors", "attributes", "replacements", "shapes")


@cache
def pruned() -> tuple[Net, PruningPlan]:
    torch.manual_seed(0)
    net = Net()
    inputs = torch.rand(2, 3, 4, 4)
    result = taskprune.prune(net, None, 0.3, example_inputs=inputs, importance="magnitude")
    return net, result.plan


def plan() -> PruningPlan:
    return pruned()[1]


def meaning(text: str) -> bool:
    return PruningPlan.from_json(text) == plan()


def signed(text: str) -> str | None:
    """Seal a changed plan again, as somebody who means harm can; ``None`` where it is no JSON."""
    try:
        content = json.loads(text)
        content.pop("sha256", None)
        return json.dumps(sealed(content))
    except (ValueError, RecursionError, AttributeError):
        return None


def test_the_plan_has_all_that_plans_can_have() -> None:
    whole = plan()
    parts = (whole.groups, whole.tensors, whole.activations, whole.attributes, whole.replacements)
    assert all((*parts, whole.rationale, whole.shapes, whole.costs))
    assert meaning(whole.to_json())


def test_damaged_bytes_are_refused_or_mean_the_same(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"

    def load(data: bytes) -> bool:
        put(path, data)
        return PruningPlan.load(path) == plan()

    counts = outcomes(damaged_bytes(plan().to_json().encode(), 1000, seed=0), load)
    assert counts["refused"] > 950


def test_changed_members_are_refused() -> None:
    counts = outcomes(damaged_json(json.loads(plan().to_json()), 1000, seed=1), meaning)
    assert counts["refused"] > 950


def test_a_plan_that_is_sealed_again_is_checked_all_the_same() -> None:
    """It may say something else, but only what a plan can say, and does no harm."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    net = pruned()[0]

    def use(text: str) -> bool:
        read = PruningPlan.from_json(text)
        if read == plan():
            return True
        assert str(read)
        assert read.explain("")
        assert PruningPlan.from_json(read.to_json()) == read
        if any(getattr(read, part) != getattr(plan(), part) for part in CARRIED_OUT):
            apply_plan(net, read)
        return False

    texts = map(signed, damaged_json(json.loads(plan().to_json()), 600, seed=2))
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    counts = outcomes((text for text in texts if text), use, may_differ=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert counts["refused"] > 200
    assert counts["other"] > 0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, f"{grown} KiB"


@pytest.mark.parametrize("section", ["groups", "tensors", "activations"])
@pytest.mark.parametrize("ranges", ["0-999999999", "0-2000000000", "0 " * 10**6])
def test_ranges_are_bounded_before_they_are_expanded(section: str, ranges: str) -> None:
    content = json.loads(plan().to_json())
    content.pop("sha256")
    record = content[section][0]
    record["drop" if section == "groups" else "keep"] = ranges
    record["n_channels" if section == "groups" else "size"] = 2**40
    text = json.dumps(sealed(content))
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            PruningPlan.from_json(text)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def changed(section: str, **values: Any) -> str:
    content = json.loads(plan().to_json())
    content.pop("sha256")
    content[section][0].update(values)
    return json.dumps(sealed(content))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("tensors", {"name": "nowhere"}, "shapes"),
        ("tensors", {"dim": 9}, "dim"),
        ("tensors", {"dim": -1}, "dim"),
        ("tensors", {"dim": "x"}, "`dim`"),
        ("tensors", {"size": 9}, "size"),
        ("groups", {"n_channels": 0, "drop": ""}, "channel"),
        ("groups", {"n_channels": 2, "drop": "0-1"}, "channel"),
        ("groups", {"n_channels": True}, "n_channels"),
        ("groups", {"tasks": "all"}, "tasks"),
        ("groups", {"tasks": [1]}, "tasks"),
        ("groups", {"colour": "red"}, "colour"),
        ("attributes", {"path": []}, "path"),
        ("attributes", {"value": 10**30}, "value"),
        ("replacements", {"kind": None}, "kind"),
    ],
)
def test_each_field_is_checked_by_type_and_against_the_shapes(
    section: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        PruningPlan.from_json(changed(section, **values))


@pytest.mark.parametrize("detail", ["", "{", "[]", '{"eval": 3}', "[" * 10_000, '{"eval": {}}'])
def test_a_dropped_module_of_no_form_is_refused(detail: str) -> None:
    net, whole = pruned()
    broken = replace(whole, replacements=(ModuleReplacement("wide", "dropped_module", detail),))
    with pytest.raises(TaskPruneError):
        apply_plan(net, PruningPlan.from_json(broken.to_json()))


@pytest.mark.parametrize(
    ("module", "path"),
    [
        ("", ["sizes", "x"]),
        ("", ["sizes", 7]),
        ("", ["width", 0]),
        ("", ["fixed"]),
        ("", ["wide", "weight", "ndim"]),
        ("nowhere", ["width"]),
        ("wide.weight", ["ndim"]),
    ],
)
def test_a_stored_size_in_a_place_that_is_none_is_refused(module: str, path: list[str]) -> None:
    net = pruned()[0]
    with pytest.raises(TaskPruneError, match="lacks"):
        apply_plan(net, PruningPlan.from_json(changed("attributes", module=module, path=path)))
    assert net.width == 12


@pytest.mark.parametrize("value", HOSTILE)
def test_whole_files_of_something_else_are_refused(value: str) -> None:
    with pytest.raises(InputError):
        PruningPlan.from_json(value)


def test_plans_of_another_version_say_so() -> None:
    content = json.loads(plan().to_json())
    content["format"] = 1
    with pytest.raises(InputError, match="format 1"):
        PruningPlan.from_json(json.dumps(content))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("none.json", "", "bytes"):
        with pytest.raises(InputError, match=str(tmp_path / name)):
            PruningPlan.load(tmp_path / name)


def test_files_of_endless_size_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match="at most"):
        PruningPlan.load(path)


FULL_DISK = """
import resource, sys
from taskprune.errors import CheckpointError
from taskprune.plan.plan import PruningPlan
path = sys.argv[1]
plan = PruningPlan.load(path)
half = len(plan.to_json()) // 2
resource.setrlimit(resource.RLIMIT_FSIZE, (half, resource.RLIM_INFINITY))
try:
    plan.save(path)
except CheckpointError as error:
    assert path in str(error)
    sys.exit(0)
sys.exit(1)
"""


def test_a_full_disk_leaves_the_plan_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan().save(path)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths})
    assert PruningPlan.load(path) == plan()
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "plan.json"):
        with pytest.raises(CheckpointError, match=str(path)):
            plan().save(path)
