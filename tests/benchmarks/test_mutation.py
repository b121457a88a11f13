"""Faults are drawn by their seed and counted as what they came to."""

from __future__ import annotations

import json
from pathlib import Path

import mutation
import pytest

NAMES = [f"taskprune.{room}.file.x_do__mutmut_{n}" for room in mutation.ROOMS for n in range(4)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What mutmut leaves: faults that were noticed, survived, ran out of time, or met no test."""
    for room in mutation.ROOMS:
        own = [name for name in NAMES if mutation.room(name) == room]
        path = tmp_path / "mutants" / "taskprune" / room / "file.py.meta"
        path.parent.mkdir(parents=True)
        path.write_text(
            json.dumps({"exit_code_by_key": dict(zip(own, [1, 0, 36, 33], strict=True))})
        )
    (tmp_path / "wider.json").write_text(json.dumps({NAMES[3]: 1, NAMES[7]: 0}))
    monkeypatch.setattr(mutation, "change", lambda _folder, name: [f"+ {name}"])
    return tmp_path


def test_every_fault_is_counted_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation, "READ", {NAMES[1]: "changes nothing"})
    found = mutation.summary(folder, NAMES)
    counts = [
        [row[k] for k in ("noticed", "no test", "explained", "not noticed")]
        for row in found["rows"]
    ]
    assert counts == [[3, 0, 1, 0], [2, 0, 0, 2]]
    assert [one["read"] for one in found["survivors"]] == ["changes nothing", "", ""]


def test_what_no_test_runs_is_not_noticed(folder: Path) -> None:
    (folder / "wider.json").unlink()
    found = mutation.summary(folder, NAMES)
    assert [row["not noticed"] for row in found["rows"]] == [2, 2]
    assert [one["fault"] for one in found["survivors"]] == [NAMES[n] for n in (1, 3, 5, 7)]


def test_a_larger_sample_holds_a_smaller_one() -> None:
    assert mutation.sampled(NAMES, 6, seed=1)[:3] == mutation.sampled(NAMES, 3, seed=1)
    assert set(mutation.sampled(NAMES, 99, seed=1)) == set(NAMES)
